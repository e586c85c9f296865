#!/bin/sh
# Runs once as root inside the new system, after its packages and overlay are in place.
set -eu

useradd --uid 1000 --user-group --create-home --shell /bin/bash user
# A password that nobody can type; sudo asks for none.
usermod --password '*' user
chmod 0440 /etc/sudoers.d/user
