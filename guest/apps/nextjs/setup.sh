#!/bin/sh
# Runs once as root inside the new system, after its packages and the app are in place.
set -eu

useradd --uid 1000 --user-group --create-home --shell /bin/bash user
usermod --password '*' user
chmod 0440 /etc/sudoers.d/user

# Built here, by the processor of the build machine: in an emulated guest it takes minutes.
cd /srv/app
export NEXT_TELEMETRY_DISABLED=1
node node_modules/next/dist/bin/next build
chown -R user:user /srv/app
