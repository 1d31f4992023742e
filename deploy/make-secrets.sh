#!/bin/sh
# Write a new random password for Redis to deploy/secrets/redis_password, unless there is one.
#
# The folder is closed to other users of this machine. The file itself is not: it is mounted into containers, where the service's
# user, another one than you, has to read it.
set -eu
folder="$(dirname "$0")/secrets"
file="$folder/redis_password"
if [ -s "$file" ]; then
  echo "$file is there already"
  exit 0
fi
mkdir -p "$folder"
chmod 700 "$folder"
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$file"
chmod 644 "$file"
echo "wrote $file"
