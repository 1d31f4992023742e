#!/bin/sh
# Make what docker-compose.yml mounts as secrets, unless it is there: random passwords for Redis and for Flower, and empty files
# for API keys and webhooks.
#
# The folder is closed to other users of this machine. The files themselves are not: they are mounted into containers, where the
# service's user, another one than you, has to read them.
set -eu
folder="$(dirname "$0")/secrets"
mkdir -p "$folder"
chmod 700 "$folder"
for name in redis_password flower_password; do
  file="$folder/$name"
  if [ -s "$file" ]; then
    echo "$file is there already"
    continue
  fi
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$file"
  chmod 644 "$file"
  echo "wrote $file"
done

keys="$folder/api_keys"
if [ ! -e "$keys" ]; then
  echo "# A line tenant:sha256 for each API key; API_KEYS_FILE=$keys make key NAME=alice adds one" > "$keys"
  chmod 644 "$keys"
  echo "wrote $keys"
fi

webhooks="$folder/webhooks"
if [ ! -e "$webhooks" ]; then
  echo "# A table [[tenant]] with url and secret for each webhook: docs/webhooks.md" > "$webhooks"
  chmod 644 "$webhooks"
  echo "wrote $webhooks"
fi
