#!/usr/bin/env python3
"""The store of notes with the two syncs that notes.py forgets: the guide's
second version.
"""

import hashlib
import os
import random
import sys

import plugpull


def save(directory, name, text):
    """Replace a note. When this returns, the note is safe, or so it says."""
    path = os.path.join(directory, name)
    with open(path + ".new", "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # the content, before its name
    os.rename(path + ".new", path)
    sync_directory(directory)  # the name, before the promise


def sync_directory(directory):
    """Make the names in a directory durable."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def fill(directory, seed):
    """Save notes at random, each promised to plugpull."""
    promises = plugpull.Promises()
    numbers = random.Random(int(seed))
    for edition in range(300):
        name = "note-%d" % numbers.randrange(20)
        text = b"%s, edition %d\n" % (name.encode(), edition)
        text *= numbers.randrange(1, 200)
        promises.begin(name, hashlib.sha256(text).hexdigest())
        save(directory, name, text)
        promises.ack(name)


if __name__ == "__main__":
    fill(*sys.argv[1:])
