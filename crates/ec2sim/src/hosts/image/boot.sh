# How a host boots, before its init takes over. What it is to be lies in $host: `vars`, lists of devices, a tree of
# sysfs, and the metadata.
set -eu
host=/var/lib/ec2sim/host
. "$host/vars"

echo "Booting $instance_id ($instance_type) from $image_name"

# Its own network stack is the host's to configure, and so is what lies beneath its control groups. The rest of the
# kernel belongs to the machine that all hosts share, and stays read-only.
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
for group in /sys/fs/cgroup/*; do
    mount -o remount,bind,rw "$group"
done

# Docker's command line and engine do not agree on how to ask for it.
ip link set eth0 address "$mac"
# Whoever has heard of another one is told, and told again, for the first word may come too soon to be taken.
setsid busybox arping -q -U -c 4 -I eth0 "$private_ip" < /dev/null > /dev/null 2>&1 &

# The way out that every host of EC2 knows. Nothing answers there.
ip route replace default via "$gateway"
for address in $more_addresses; do
    ip address add "$address/32" dev eth0
done

# The VPC's resolver knows no names, and says so at once: the host is not to wait for answers that will not come.
ip route add unreachable "$resolver/32"
printf 'nameserver %s\noptions timeout:1 attempts:1\n' "$resolver" > /etc/resolv.conf
printf '127.0.0.1 localhost\n%s %s\n' "$private_ip" "$(hostname)" > /etc/hosts

# The metadata service is one hop away, in a network of its own, so that how far its answers go is a matter of the
# kernel's. Its address is on no link of the host.
ip netns add ec2-metadata
ip link add ec2-metadata type veth peer name eth0 netns ec2-metadata
ip link set ec2-metadata up
ip route add 169.254.169.254 dev ec2-metadata src "$private_ip"
ip -n ec2-metadata link set lo up
ip -n ec2-metadata link set eth0 up
ip -n ec2-metadata address add 169.254.169.254/32 dev eth0
ip -n ec2-metadata route add default dev eth0
# In a session of its own: the console hangs up when init takes over.
setsid nsenter --net=/run/netns/ec2-metadata \
    /var/lib/ec2sim/program host-metadata --file "$host/metadata.json" < /dev/null \
    > /var/log/ec2-metadata.log 2>&1 &

# What its devices look like: all of them swallow what they are given.
while read -r device; do
    mkdir -p "${device%/*}"
    mknod -m 666 "$device" c 1 3
done < "$host/devices"

# What the kernel would tell of them lies over what it tells.
for part in bus class devices module; do
    mount -t overlay overlay -o "lowerdir=$host/sys/$part:/sys/$part" "/sys/$part"
done

if ! [ -e /var/lib/ec2sim/is-set-up ]; then
    cp "$host/cloud.cfg" /etc/cloud/cloud.cfg.d/99_ec2.cfg
    # Each host is one of its own.
    : > /etc/machine-id
    if [ "$has_docker" = no ]; then
        rm -f /usr/bin/docker /usr/sbin/dockerd /usr/bin/containerd /usr/sbin/runc
        rm -f /lib/systemd/system/docker.* /lib/systemd/system/containerd.service
    fi
    if [ -e "$host/gpus" ]; then
        install -m 755 "$host/nvidia-smi" /usr/bin/nvidia-smi
        install -m 755 "$host/nvidia-hook" /usr/bin/nvidia-container-runtime-hook
        install -D -m 644 "$host/gpus" /etc/nvidia/gpus
    fi
    if [ "$has_ssh" = no ]; then
        ln -sf /dev/null /etc/systemd/system/ssh.service
        ln -sf /dev/null /etc/systemd/system/ssh.socket
    fi
    touch /var/lib/ec2sim/is-set-up
fi

sleep "$slow_boot_secs"
exec /sbin/init
