#!/bin/sh
# fetch_peers.sh: unpack the peers' Debian packages into build/bench/peers, where no service starts and nothing of
# the system changes.  Asks first; YES=1 answers.  A machine without apt, or a "no", measures what is installed.
set -eu
cd "$(dirname "$0")/.."
target=build/bench/peers
packages="haproxy nginx libnginx-mod-stream socat openssh-server pagekite python3-socksipychain
    liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 libwrap0"
[ ! -f $target/versions ] || exit 0
command -v apt-get >/dev/null 2>&1 || exit 0
command -v dpkg >/dev/null 2>&1 || exit 0

if [ "${YES-}" != 1 ]; then
    echo "Peers to measure against are missing in $target.  Download these Debian packages (4 MB) and unpack" >&2
    printf 'them there, without installing anything?\n  %s\n[y/N] ' "$(echo $packages)" >&2
    read -r answer || answer=
    case $answer in [yY]*) ;; *) echo "Only what is installed is measured." >&2; exit 0 ;; esac
fi

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
chmod 755 "$made"
# shellcheck disable=SC2086  # one word a package
(cd "$made" && apt-get download $packages >log 2>&1) || { tail -n 5 "$made/log" >&2; exit 1; }
rm -rf $target && mkdir -p $target
for package in "$made"/*.deb; do dpkg -x "$package" $target; done
(cd "$made" && ls ./*.deb | sed 's/^\.\///') >$target/versions
