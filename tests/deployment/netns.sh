#!/bin/bash
# One coordinator and N sites as network namespaces on a bridge: real addresses, real firewalls, cables that can be pulled.
#   netns.sh PREFIX up N | down N | cut I | mend I | slow I RATE
# The coordinator is 10.77.0.1 in namespace PREFIX-coord, site I is 10.77.0.(10+I) in PREFIX-site-I.
set -eu
prefix=$1 action=$2 number=$3 net=10.77.0 switch=$1-sw
host() {  # namespace, address, its end of the cable on the switch
  ip netns add "$1"
  ip link add eth0 netns "$1" type veth peer name "$3" netns "$switch"
  ip -n "$switch" link set "$3" master br0 up
  ip -n "$1" addr add "$2/24" dev eth0
  ip -n "$1" link set eth0 up
  ip -n "$1" link set lo up
}
case $action in
  up)
    # the bridge has a namespace of its own: the machine's own firewall rules (Docker's, say) do not reach it
    ip netns add "$switch"
    ip -n "$switch" link add br0 type bridge
    ip -n "$switch" link set br0 up
    host "$prefix-coord" "$net.1" c0
    for i in $(seq "$number"); do
      host "$prefix-site-$i" "$net.$((10 + i))" "s$i"
      # a hospital's firewall: out to the coordinator's one port, nothing else out, nothing in
      ip netns exec "$prefix-site-$i" nft -f - <<RULES
table inet site {
  chain in  { type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; }
  chain out { type filter hook output priority 0; policy drop; oif lo accept; ip daddr $net.1 tcp dport 8443 accept;
              ct state established,related accept; }
}
RULES
    done ;;
  down)
    for name in "$prefix-coord" $(seq -f "$prefix-site-%g" "$number") "$switch"; do ip netns del "$name" 2>/dev/null || true; done ;;
  cut)  ip -n "$switch" link set "s$number" down ;;
  mend) ip -n "$switch" link set "s$number" up ;;
  slow)  # both directions, with the queue of a home router
    for place in "$prefix-site-$number eth0" "$switch s$number"; do
      ip netns exec ${place% *} tc qdisc replace dev "${place#* }" root tbf rate "$4" burst 32kbit latency 400ms
    done ;;
esac
