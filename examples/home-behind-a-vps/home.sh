#!/bin/sh
# On the home server, once the tunnel wg0 is up: what is sent from the address in the tunnel goes into the tunnel,
# wherever it is for. Everything else is left as it is. `home.sh down` undoes it.
set -e
if [ "$1" = down ]; then
    ip    rule del from 10.8.0.2 lookup 100
    ip -6 rule del from fd08::2  lookup 100
    exit
fi
ip    rule  add from 10.8.0.2 lookup 100
ip    route add default dev wg0 table 100
ip -6 rule  add from fd08::2 lookup 100
ip -6 route add default dev wg0 table 100
