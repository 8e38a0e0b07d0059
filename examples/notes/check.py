#!/usr/bin/env python3
"""Whether the notes that were promised are there: `check.py DIRECTORY LEDGER`.

plugpull runs it on what each power cut left. It says what is lost and exits
with 1, or exits with 0.
"""

import hashlib
import json
import os
import sys


def main(directory, ledger):
    allowed = {}  # what each note may hold, the promised edition first
    with open(ledger) as lines:
        for line in map(json.loads, lines):
            editions = allowed.setdefault(line["key"], [None])
            if line["state"] == "begun":
                editions.append(line["value"])
            else:
                del editions[: editions.index(line["value"])]
    lost = 0
    for name, editions in allowed.items():
        try:
            with open(os.path.join(directory, name), "rb") as file:
                found = hashlib.sha256(file.read()).hexdigest()
        except FileNotFoundError:
            found = None
        if found not in editions:
            lost += 1
            print(f"{name}: promised {editions[0]}, found {found}")
    print(f"{len(allowed)} notes, {lost} lost")
    return lost > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
