#!/bin/sh
# Make what docker-compose.yml mounts as secrets, unless it is there: random passwords for Redis, Flower and Grafana, a key by which
# Prometheus asks the API for its metrics, a file for API keys that knows this one alone, and an empty file for webhooks.
#
# The folder is closed to other users of this machine. The files themselves are not: they are mounted into containers, where the
# service's user, another one than you, has to read them.
set -eu
folder="$(dirname "$0")/secrets"
mkdir -p "$folder"
chmod 700 "$folder"

make_secret() { # make_secret NAME [START]: 32 random bytes in hexadecimal digits
  file="$folder/$1"
  if [ -s "$file" ]; then
    echo "$file is there already"
    return
  fi
  printf '%s%s' "${2:-}" "$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" > "$file"
  chmod 644 "$file"
  echo "wrote $file"
}

make_secret redis_password
make_secret flower_password
make_secret grafana_password
make_secret prometheus_key va_

keys="$folder/api_keys"
if [ ! -e "$keys" ]; then
  echo "# A line tenant:sha256 for each API key; API_KEYS_FILE=$keys make key NAME=alice adds one" > "$keys"
  chmod 644 "$keys"
  echo "wrote $keys"
fi
# shasum: macOS has no sha256sum
digest="$( (sha256sum || shasum -a 256) < "$folder/prometheus_key" 2> /dev/null | cut -d ' ' -f 1)"
if [ -z "$digest" ]; then
  echo "neither sha256sum nor shasum is here: $keys lacks the key of Prometheus" >&2
  exit 1
fi
if ! grep -q "^prometheus:$digest:watch\$" "$keys"; then
  # Added to, not replaced: a running container keeps the file that it was started with.
  if [ -n "$(tail -c 1 "$keys")" ]; then echo >> "$keys"; fi
  echo "prometheus:$digest:watch" >> "$keys"
  echo "added the key of Prometheus to $keys"
fi

webhooks="$folder/webhooks"
if [ ! -e "$webhooks" ]; then
  echo "# A table [[tenant]] with url and secret for each webhook: docs/webhooks.md" > "$webhooks"
  chmod 644 "$webhooks"
  echo "wrote $webhooks"
fi
