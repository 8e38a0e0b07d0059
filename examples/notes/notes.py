#!/usr/bin/env python3
"""A store of notes, one file each. It replaces a note by renaming a new file
over the old one, as every book says, and forgets what some of them say next:
neither the file nor the directory is synced before the note is promised.
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
    os.rename(path + ".new", path)


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
