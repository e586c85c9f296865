#!/bin/bash
# Stands in for envd in the boot tests: says what it finds in the guest, one "name=value" a line, and
# ends, which ends the guest. test.mode= on the kernel command line chooses another end.
[ "$1" = --version ] && { echo 0.0.0; exit; }

say() { echo "check $1=$2"; }
machine_id=$(cat /etc/machine-id)
say hostname "$(hostname) $(cat /etc/hostname)"
say machine-id "$machine_id"

case " $(cat /proc/cmdline) " in
*" test.mode=terminate "*) kill -TERM 1; sleep 60; exit 1 ;;
*" test.mode=output "*) for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done | paste -sd " " > /output; exit 0 ;;
*" test.mode=killed "*) kill -KILL $$ ;;
esac

say arguments "$*"
say parent "$PPID"
say environment "$PATH $HOME"
say init-seconds "$WRENN_INIT_SECONDS"
say user "$(id user)"
say sudo "$(su user -c 'cd && echo $(pwd) $(sudo -n id -u)')"
say python "$(python3 -c 'import ssl, sqlite3, json, venv, multiprocessing; print("Grüße")')"
say git "$(git --version)"
say tools "$(for p in curl socat ps ip tput sudo python3; do command -v $p; done | wc -l)"
say certificates "$(test -s /etc/ssl/certs/ca-certificates.crt && echo present)"
say resolvers "$(tr '\n' ' ' < /etc/resolv.conf)"
say hosts "$(getent ahostsv4 "$(hostname)" | head -1 | tr -s " ")"
say address "$(ip -br -4 address show dev eth0 | tr -s ' ')"
say route "$(ip route show default)"
say loopback "$(ip -br -4 address show dev lo | tr -s ' ')"
say pty "$(python3 -c 'import os, pty; print(os.ttyname(pty.openpty()[1]))')"
say fd "$(cat <(echo linked))"
say root "$(grep ' / ' /proc/mounts)"
say mounts "$(for m in /dev/shm /run /sys/fs/cgroup /dev/pts; do stat -f -c %T $m; done | tr '\n' ' ')"
say tmp "$(stat -c %a /tmp /dev/shm | tr '\n' ' ')$(stat -f -c %T /tmp)"
say open-files "$(ulimit -Sn) $(ulimit -Hn)"
say available-mib "$(awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo)"
say init-file "$(readlink /proc/1/exe)"
say build-host "$(ls /etc/ssh/ssh_host_* /var/lib/systemd/random-seed 2>/dev/null)"
say seconds-since-epoch "$(date +%s)"
# A process that loses its parent becomes a child of PID 1 and must not stay as a zombie.
bash -c 'sleep 0.2 & exit 0'
sleep 1
say zombies "$(ps -eo stat | grep -c '^Z')"
exit 3
