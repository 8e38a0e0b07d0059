"""Tells plugpull what a program promises.

    promises = plugpull.Promises()
    promises.begin("notes/1", value)    # before the program begins to write
    ...                                 # write, sync, whatever makes it durable
    promises.ack("notes/1")             # after it gave its word

Each call returns when plugpull has recorded it. Outside a test, where the
environment has no PLUGPULL, the calls do nothing. Keys and values are `bytes`
or `str`; a value of None is a removal. `ack` means the latest `begin` of the
key on the same object, so give each thread one of its own.
"""

import os
import socket

__all__ = ["Promises", "Refused"]

_PLAIN = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"
)


class Refused(Exception):
    """plugpull did not take what was said; the test run is void."""


class Promises:
    """A connection to the promise socket."""

    def __init__(self, path=None):
        path = path or os.environ.get("PLUGPULL")
        self._socket = self._answers = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(path)
            self._answers = self._socket.makefile("rb")

    def begin(self, key, value=None):
        """The key is about to get this value; without one, to be removed."""
        self._say(b"begin", key, *([] if value is None else [value]))

    def ack(self, key):
        """The program now promises the latest begin of the key."""
        self._say(b"ack", key)

    def served(self, key, value):
        """A reader was given this value of the key."""
        self._say(b"served", key, value)

    def mark(self, text):
        """Name this moment; a scenario can cut the power there."""
        if "\n" in text:
            raise ValueError("a mark is one line")
        self._line(b"mark " + text.encode())

    def _say(self, word, *fields):
        self._line(b" ".join([word, *map(_encoded, fields)]))

    def _line(self, line):
        if self._socket is None:
            return
        self._socket.sendall(line + b"\n")
        answer = self._answers.readline()
        if answer != b"ok\n":
            why = answer.decode(errors="replace").strip()
            raise Refused(why or "plugpull hung up")


def _encoded(text):
    data = text.encode() if isinstance(text, str) else bytes(text)
    return b"".join(bytes([b]) if b in _PLAIN else b"%%%02X" % b for b in data)
