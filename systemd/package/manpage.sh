#!/bin/bash
# manpage.sh PAGE.md: a page of docs/man as troff on stdout; lowdown takes the title as options.
set -euo pipefail
field() { sed -n "s/^$1: //p" "$2" | head -n 1; }
sed '1,/^---$/d' "$1" |
    lowdown -s -Tman -M title="$(field title "$1")" -M section="$(field section "$1")" \
        -M volume="$(field header "$1")" -
