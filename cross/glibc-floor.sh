#!/bin/sh
# The newest glibc version that a program asks for, and so the oldest system that runs it.
# usage: cross/glibc-floor.sh PROGRAM [MAX]      fails where the program asks for more than MAX, such as 2.31
set -eu
program=$1 max=${2:-}
needs=$(readelf --version-info --wide "$program" | grep -o 'GLIBC_2[.0-9]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
echo "$program: needs glibc ${needs:-none}"
[ -n "$needs" ] && [ -n "$max" ] || exit 0
newer=$(printf '%s\n%s\n' "$needs" "$max" | sort -V | tail -n 1)
if [ "$newer" != "$max" ]; then
  echo "$program: needs glibc $needs, at most $max is allowed; build it with cross/build.sh --container" >&2
  exit 1
fi
