import fcntl, hashlib, mmap, random, struct, subprocess

# ---- device-mapper, by its ioctls (linux/dm-ioctl.h) ----

CONTROL = os.open("/dev/mapper/control", os.O_RDWR)
HEAD = struct.Struct("=3I2IIiIIIQ128s129s7x")
CREATE, REMOVE, SUSPEND, STATUS, LOAD, MESSAGE = 3, 4, 6, 7, 9, 14
SUSPENDED, NO_LOCKFS = 1 << 1, 1 << 10


def dm(command, name, payload=b"", targets=0, flags=0):
    size = HEAD.size + len(payload)
    head = HEAD.pack(4, 0, 0, size, HEAD.size, targets, 0, flags, 0, 0, 0, name.encode(), b"")
    packet = bytearray(head + payload)
    fcntl.ioctl(CONTROL, 0xC000FD00 | (HEAD.size << 16) | command, packet)
    number = HEAD.unpack_from(packet)[10]
    return f"/dev/dm-{(number & 0xff) | (number >> 12 & 0xfff00)}"


def make(name, sectors, target, parameters):
    """A device with one target; its node."""
    dm(CREATE, name)
    words = parameters.encode() + b"\0"
    words += bytes(-len(words) % 8)
    spec = struct.pack("=QQiI16s", 0, sectors, 0, 0, target.encode())
    dm(LOAD, name, spec + words, targets=1)
    return dm(SUSPEND, name)


def dm_number(name):
    number = os.stat(dm(STATUS, name)).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def message(name, text):
    dm(MESSAGE, name, struct.pack("=Q", 0) + text.encode() + b"\0")


def suspend(name):
    dm(SUSPEND, name, flags=SUSPENDED | NO_LOCKFS)


def run(*argv):
    ended = subprocess.run(argv, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{argv} ended with {ended.returncode}: {ended.stdout}{ended.stderr}")


def forget(fs):
    """Btrfs remembers devices, and would rather have the newest of those that look alike."""
    if fs == "btrfs":
        with open("/dev/btrfs-control", "rb") as control:
            fcntl.ioctl(control, 0x50009405, bytearray(4096))  # BTRFS_IOC_FORGET_DEV


# ---- the workload: pages, each with an fsync and a mark ----

PAGE, PAGES = 8192, 64
fs, mkfs, fsck = ARGS[:3]
prefixes, logged_bytes, log_at = map(int, ARGS[3:])
# Each fsync is a flush at least, and a mark.
writes = prefixes // 2 + 1


def page(write):
    return random.Random(write).randbytes(PAGE)


def record(device):
    """Log a run of the workload, from mkfs to umount; the log's device."""
    all_sectors = int(open(f"/sys/block/{device[5:]}/size").read())
    sectors = logged_bytes // 512
    below = make("below", sectors, "linear", f"{device} 0")
    log_sector = log_at // 512
    log = make("log", all_sectors - log_sector, "linear", f"{device} {log_sector}")
    logged = make("logged", sectors, "log-writes", f"{below} {log}")
    run(*mkfs.split(), logged)
    message("logged", "mark mkfs")
    mount(logged, fs)
    os.mkdir(f"{AT}/pages")
    file = os.open(f"{AT}/pages/pages", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for path in [None, f"{AT}/pages", AT]:
        to = file if path is None else os.open(path, os.O_RDONLY)
        os.fsync(to)
        if path:
            os.close(to)
    message("logged", "mark made")
    for write in range(writes):
        assert os.pwrite(file, page(write), write % PAGES * PAGE) == PAGE
        os.fsync(file)
        message("logged", f"mark acked-{write}")
    os.close(file)
    umount()
    forget(fs)
    dm(REMOVE, "logged")
    dm(REMOVE, "below")
    return log


# ---- the log: Documentation/admin-guide/device-mapper/log-writes.rst ----

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Log:
    """Its entries: (place, bytes, flags, place of the data in the log or text of the mark)."""

    def __init__(self, node):
        self.file = os.open(node, os.O_RDONLY | os.O_DIRECT)
        self.buffer = memoryview(mmap.mmap(-1, 4 << 20))
        magic, version, count, unit = struct.unpack_from("=QQQI", self.read(0, 4096))
        assert (magic, version) == (0x6A736677736872, 1), (magic, version)
        self.entries, at = [], unit
        for _ in range(count):
            head = self.read(at, unit)
            place, length, flags, text = struct.unpack_from("=4Q", head)
            at += unit
            if flags & MARK:
                self.entries.append((0, 0, flags, bytes(head[32 : 32 + text]).decode()))
                continue
            self.entries.append((place * unit, length * unit, flags, at))
            if not flags & DISCARD:
                at += length * unit
        self.end = at

    def read(self, at, length):
        view = self.buffer[:length]
        assert os.preadv(self.file, [view], at) == length, f"the log ends at {at}"
        return view

    def pieces(self, entry):
        """The data of a write with its places, as much as fits at a time."""
        place, length, _, at = entry
        while length > 0:
            view = self.read(at, min(length, len(self.buffer)))
            yield place, view
            place, at, length = place + len(view), at + len(view), length - len(view)


def stops(log):
    """Where a prefix ends: behind an entry with FLUSH or FUA, and behind a mark."""
    begun, found = False, []
    for number, (_, _, flags, text) in enumerate(log.entries):
        if flags & MARK and text == "mkfs":
            begun = True
        elif begun and flags & (FLUSH | FUA | MARK):
            found.append(number + 1)
    return found[:prefixes]


def distinct(log, ends):
    """How many different disks these prefixes are, block by block."""
    sums, total, seen, entry = {}, 0, set(), 0
    zeros = bytes(512)

    def hold(where, data):
        nonlocal total
        value = 0
        if data != zeros:
            key = struct.pack("=Q", where) + data
            value = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
        total += value - sums.pop(where, 0)
        if value:
            sums[where] = value

    for end in ends:
        for one in log.entries[entry:end]:
            place, length, flags, _ = one
            if flags & MARK:
                continue
            if flags & DISCARD:
                for where in range(place // 512, (place + length) // 512):
                    hold(where, zeros)
                continue
            for place, view in log.pieces(one):
                data = bytes(view)
                for at in range(0, len(data), 512):
                    hold((place + at) // 512, data[at : at + 512])
        entry = end
        seen.add(total)
    return len(seen)


# ---- the replay ----


def pool(device, sectors):
    """Thin volumes between what was logged and the log; only what maps them is in memory."""
    run("modprobe", "brd", "rd_nr=1", "rd_size=65536")
    run("modprobe", "dm-thin-pool")
    with open("/dev/ram0", "wb") as metadata:
        metadata.write(bytes(4096))
    room = log_at // 512 - sectors
    data = make("data", room, "linear", f"{device} {sectors}")
    make("pool", room, "thin-pool", f"/dev/ram0 {data} 128 0")
    message("pool", "create_thin 0")


def take_snapshot(sectors):
    suspend("replay")
    message("pool", "create_snap 1 0")
    dm(SUSPEND, "replay")
    return make("snapshot", sectors, "thin", f"{dm_number('pool')} 1")


def drop_snapshot():
    dm(REMOVE, "snapshot")
    message("pool", "delete 1")


def promised(log, end):
    """What was acknowledged by then: the last write, -1 for the empty file, None for nothing."""
    for _, _, flags, text in reversed(log.entries[:end]):
        if flags & MARK:
            if text == "made":
                return -1
            return int(text.split("-")[1]) if text.startswith("acked-") else None
    return None


def look(snapshot, last):
    """Mount, read tree and pages, compare with what was promised: what is wrong."""
    forget(fs)
    mount(snapshot, fs)
    names = tree()
    wrong = []
    if last is not None:
        if "pages/pages" not in names:
            wrong.append("pages/pages is absent")
        else:
            with open(f"{AT}/pages/pages", "rb", buffering=0) as file:
                # The one that was begun next may be there in part.
                begun = (last + 1) % PAGES
                for number in range(PAGES):
                    found = file.read(PAGE)
                    write = last - (last - number) % PAGES
                    if number != begun and write >= 0 and found != CONTENT[write]:
                        wrong.append(f"page {number} is not of write {write}")
    umount()
    return wrong


def replay(log, ends, sectors, checks):
    """Each prefix on a disk of its own; seconds by what they went into."""
    spent = dict.fromkeys(["replay", "snapshot", "look", "fsck"], 0.0)
    thin = make("replay", sectors, "thin", f"{dm_number('pool')} 0")
    device = os.open(thin, os.O_RDWR | os.O_DIRECT)
    entry, ledger = 0, [promised(log, end) for end in ends]

    def apply(until):
        for at in range(entry, until):
            one = log.entries[at]
            if one[2] & MARK:
                continue
            if one[2] & DISCARD:
                fcntl.ioctl(device, 0x1277, struct.pack("=QQ", one[0], one[1]))  # BLKDISCARD
                continue
            for place, view in log.pieces(one):
                assert os.pwritev(device, [view], place) == len(view)

    # What mkfs wrote is no prefix of the workload.
    first = next(at for at, one in enumerate(log.entries) if one[3] == "mkfs") + 1
    apply(first)
    entry = first
    start = now()
    for end, last in zip(ends, ledger):
        a = now()
        apply(end)
        entry = end
        b = now()
        snapshot = take_snapshot(sectors)
        c = now()
        if wrong := look(snapshot, last):
            raise SystemExit(f"the prefix up to entry {end} broke a promise: {wrong}")
        d = now()
        if checks:
            run(*fsck.split(), snapshot)
        e = now()
        drop_snapshot()
        f = now()
        spent["replay"] += b - a
        spent["snapshot"] += (c - b) + (f - e)
        spent["look"] += d - c
        spent["fsck"] += e - d
    spent["all"] = now() - start
    # The control: as if more had been promised than was written.
    assert look(take_snapshot(sectors), ledger[-1] + 2), "a broken promise went unseen"
    drop_snapshot()
    os.close(device)
    dm(REMOVE, "replay")
    return spent


log_node = record(disk())
log = Log(log_node)
ends = stops(log)
CONTENT = [page(write) for write in range(writes + 2)]
sectors = logged_bytes // 512
said = {"prefixes": len(ends), "log_bytes": log.end, "distinct": distinct(log, ends)}
pool(disk(), sectors)
said["plain"] = replay(log, ends, sectors, False)
message("pool", "delete 0")
message("pool", "create_thin 0")
said["checked"] = replay(log, ends, sectors, True)
print(json.dumps(said))
