import ctypes, faulthandler, json, os, sys, time

# Says where it was, should it take too long.
faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
ARGS = sys.argv[2:]
LIBC = ctypes.CDLL(None, use_errno=True)
AT = "/tmp/states"
now = time.perf_counter


def disk():
    """The data disk, by its serial."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/serial") as serial:
                if serial.read().strip() == "data":
                    return f"/dev/{name}"
        except FileNotFoundError:
            pass
    raise SystemExit("no disk has the serial data")


def checked(result, what):
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def mount(device, fs):
    words = device.encode(), AT.encode(), fs.encode()
    checked(LIBC.mount(*words, ctypes.c_ulong(0), None), f"mount {device}")


def umount():
    checked(LIBC.umount2(AT.encode(), 0), f"umount {AT}")


def tree():
    """Everything below the mount, each name looked at."""
    found, left = {}, [AT]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                found[os.path.relpath(entry.path, AT)] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
    return found


os.makedirs(AT, exist_ok=True)
