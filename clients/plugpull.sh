# Tells plugpull what a shell script promises. To be sourced: `. ./plugpull.sh`.
#
#     plugpull_open                     # once; in a subshell of its own again
#     plugpull_begin notes/1 "$value"   # before the script begins to write
#     ...                               # write, sync, whatever makes it durable
#     plugpull_ack notes/1              # after it gave its word
#
# `plugpull_begin KEY` without a value is a removal; `plugpull_served KEY VALUE`
# says that a reader was given a value, `plugpull_mark TEXT` names the moment.
# Each returns 0 when plugpull has recorded it and 1, with a message, when not:
# the test run is void then. Without PLUGPULL in the environment they do
# nothing.
#
# POSIX sh, with mktemp, od, tr and sed. A shell cannot connect to a socket, so
# one of socat, perl and python3 does that. Descriptors 8 and 9 are taken.

plugpull_open() {
    [ -n "${PLUGPULL-}" ] || return 0
    _plugpull_dir=$(mktemp -d) || return 1
    mkfifo "$_plugpull_dir/to" "$_plugpull_dir/from" || return 1
    _plugpull_bridge <"$_plugpull_dir/to" >"$_plugpull_dir/from" &
    exec 8>"$_plugpull_dir/to" 9<"$_plugpull_dir/from"
    rm -r "$_plugpull_dir"
}

plugpull_begin() {
    _plugpull_key=$(_plugpull_encode "$1")
    if [ $# -gt 1 ]; then
        _plugpull_say "begin $_plugpull_key $(_plugpull_encode "$2")"
    else
        _plugpull_say "begin $_plugpull_key"
    fi
}

plugpull_ack() {
    _plugpull_say "ack $(_plugpull_encode "$1")"
}

plugpull_served() {
    _plugpull_say "served $(_plugpull_encode "$1") $(_plugpull_encode "$2")"
}

plugpull_mark() {
    _plugpull_say "mark $1"
}

_plugpull_say() {
    [ -n "${PLUGPULL-}" ] || return 0
    printf '%s\n' "$1" >&8
    IFS= read -r _plugpull_answer <&9 || _plugpull_answer="plugpull hung up"
    [ "$_plugpull_answer" = ok ] && return 0
    printf 'plugpull: %s\n' "$_plugpull_answer" >&2
    return 1
}

# Plain text as it is; otherwise every byte as %XX.
_plugpull_encode() (
    LC_ALL=C
    export LC_ALL
    case $1 in
    *[!A-Za-z0-9._/-]*) printf %s "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g' ;;
    *) printf %s "$1" ;;
    esac
)

_plugpull_bridge() {
    if command -v socat >/dev/null; then
        exec socat - "UNIX-CONNECT:$PLUGPULL"
    elif command -v perl >/dev/null; then
        exec perl -MIO::Socket::UNIX -e '
            $| = 1;
            my $s = IO::Socket::UNIX->new(Peer => $ENV{PLUGPULL}) or die "plugpull: $!\n";
            while (<STDIN>) { print $s $_; $_ = <$s>; defined or exit 1; print }'
    elif command -v python3 >/dev/null; then
        exec python3 -c '
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["PLUGPULL"])
f = s.makefile("rb")
for line in sys.stdin.buffer:
    s.sendall(line)
    sys.stdout.buffer.write(f.readline() or sys.exit(1))
    sys.stdout.buffer.flush()'
    else
        echo "plugpull: there is no socat, perl or python3 to connect with" >&2
        return 1
    fi
}
