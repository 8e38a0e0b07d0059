#!/usr/bin/env python3
"""A store that appends to a log, and moves the log into a table when it opens.

    log_store.py fill DIRECTORY             put keys, each promised to plugpull
    log_store.py open DIRECTORY LEDGER      open it, and look for what was promised
    log_store.py open-hastily DIRECTORY LEDGER

Opening empties the log when the table is on the disk. Opening hastily empties it
first: what was promised is lost if the power goes in between, and then alone.
"""

import json
import os
import sys

KEYS = 12


def sync(path, flags=os.O_RDONLY):
    """Make a file, or the names in a directory, durable."""
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def fill(directory):
    import plugpull  # a check does without

    promises = plugpull.Promises()
    log = os.path.join(directory, "log")
    append(log, "")
    sync(log)
    sync(directory)
    for number in range(KEYS):
        key, value = f"key-{number}", f"value-{number}"
        promises.begin(key, value)
        append(log, f"{key} {value}\n")
        sync(log)
        promises.ack(key)


def empty(log):
    os.truncate(log, 0)
    sync(log)


def lines(path):
    """The whole lines of a file, which need not be there."""
    try:
        with open(path, errors="replace") as file:
            return [line for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def recover(directory, hastily):
    """Move the log into the table; twice does no harm."""
    log = os.path.join(directory, "log")
    table = os.path.join(directory, "table")
    logged = lines(log)
    if logged:
        text = "".join(lines(table) + logged)
        with open(table + ".new", "w") as file:
            file.write(text)
        if hastily:
            empty(log)
        sync(table + ".new")
        os.rename(table + ".new", table)
        sync(directory)
        if not hastily:
            empty(log)
    return {line.rstrip("\n") for line in lines(table)}


def check(directory, ledger, hastily):
    found = recover(directory, hastily)
    lost = 0
    with open(ledger) as promises:
        for line in map(json.loads, promises):
            if line["state"] == "acked" and f"{line['key']} {line['value']}" not in found:
                lost += 1
                print(f"{line['key']} was promised and is lost")
    return lost > 0


if __name__ == "__main__":
    command, directory, *ledger = sys.argv[1:]
    if command == "fill":
        fill(directory)
    else:
        sys.exit(check(directory, *ledger, hastily=command == "open-hastily"))
