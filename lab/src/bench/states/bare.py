fs, times = ARGS[0], int(ARGS[1])
device = disk()
CHUNK = 64 << 10
ZEROS = bytes(CHUNK)


def look():
    mount(device, fs)
    names = tree()
    with open(f"{AT}/pages/pages", "rb", buffering=0) as pages:
        while pages.read(8192):
            pass
    umount()
    return names


def chunks():
    """What the disk holds, by place; zeros are left out."""
    held = {}
    with open(device, "rb", buffering=0) as file:
        at = 0
        while chunk := file.read(CHUNK):
            if chunk != ZEROS:
                held[at] = chunk
            at += CHUNK
    return held


def put_back(held, places):
    """The disk's content as it was; its last user takes the kernel's cache of it away."""
    with open(device, "r+b", buffering=0) as file:
        for at in places:
            chunk = held.get(at, ZEROS)
            assert os.pwrite(file.fileno(), chunk, at) == len(chunk)
        os.fsync(file.fileno())


crash = chunks()
names = look()
after = chunks()
changed = [at for at in crash.keys() | after.keys() if crash.get(at) != after.get(at)]
del after
seconds = 0.0
for _ in range(times):
    put_back(crash, changed)
    start = now()
    look()
    seconds += now() - start
put_back(crash, changed)
assert chunks() == crash, "recovery wrote elsewhere this time"
look()
start = now()
for _ in range(times):
    look()
clean = now() - start
assert "pages/pages" in names, names
print(json.dumps({"crash": seconds, "clean": clean, "changed": len(changed)}))
