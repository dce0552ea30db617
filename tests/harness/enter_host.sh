#!/bin/sh
# What mpiexec (of MPICH) takes for ssh: runs a command on a host that is a network namespace.
#
#   enter_host.sh [OPTION]... ADDRESS COMMAND...
#
# TEST_NETWORK names the hosts, as harness/namespaces.py has made them: the host of the address
# 10.99.0.N is the namespace $TEST_NETWORK-N.
#
# It gets a name of its own, a /sys that shows its devices only (UCX looks there for what it may
# use), and a /dev/shm and System V memory that no other host reaches.

while [ "${1#-}" != "$1" ]; do shift; done
number=${1##*.}
shift
command="$*" # words for a shell to read, as what ssh is given
exec nsenter --net="/run/netns/$TEST_NETWORK-$number" unshare --uts --mount --ipc sh -c '
    hostname "host$0" && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /dev/shm && exec sh -c "$1"
' "$number" "$command"
