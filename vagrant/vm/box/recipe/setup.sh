#!/bin/sh
# Runs once as root inside the new system, after its packages and overlay are in place.
set -eu

useradd --uid 1000 --user-group --create-home --shell /bin/bash vagrant
usermod --password '*' vagrant
chmod 0440 /etc/sudoers.d/vagrant
systemctl enable wrenn-ssh-key.service
# Nothing of this helps a machine that lives for one run of the suites.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer logrotate.timer systemd-binfmt.service systemd-pstore.service \
	getty@tty1.service console-getty.service systemd-logind.service systemd-journal-flush.service \
	modprobe@drm.service modprobe@fuse.service
# Waits until udev has seen all devices; the one that is needed is there from the start.
systemctl mask ifupdown-pre.service
update-initramfs -u
