#!/bin/sh
# In a network namespace of its own: a tap device for each virtio NIC, a bridge for each pair of them, then QEMU.
#
# cables.sh NAME QUEUES [NAME QUEUES]... -- COMMAND...
set -e
# The bridges are cables, and say nothing themselves.
sysctl -q net.ipv6.conf.default.disable_ipv6=1
while [ "$1" != -- ]; do
    name=$1 queues=
    [ "$2" = 1 ] || queues=multi_queue
    ip link add "$name" type bridge mcast_snooping 0
    for end in a b; do
        # shellcheck disable=SC2086
        ip tuntap add dev "$name-$end" mode tap vnet_hdr $queues
        ip link set "$name-$end" mtu 9000 master "$name" up
    done
    ip link set "$name" up
    shift 2
done
shift
exec "$@"
