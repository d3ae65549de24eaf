# How a test host starts, whatever its PID 1 will be: GATEWAY, DOCKER (yes or no), INIT (sshd or systemd), SET-UP.
set -e
gateway=$1 docker=$2 init=$3 set_up=$4

# Its own network stack is the host's to configure, and so is what lies beneath its control groups. The rest of
# the kernel belongs to the machine that runs the tests, and stays read-only.
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
for group in /sys/fs/cgroup/*; do
    mount -o remount,bind,rw "$group"
done

# Like every host it knows a way out, though nothing answers there.
ip route replace default via "$gateway"

if ! [ -e /etc/host-is-set-up ]; then
    tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
    ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
    if [ "$docker" = no ]; then
        rm -f /usr/bin/docker /usr/sbin/dockerd /usr/bin/containerd /usr/sbin/runc
        rm -f /lib/systemd/system/docker.* /lib/systemd/system/containerd.service
    fi
    sh -ec "$set_up"
    touch /etc/host-is-set-up
fi

if [ "$init" = systemd ]; then
    exec /sbin/init
fi

mkdir -p /run/sshd
if [ "$docker" = yes ]; then
    dockerd < /dev/null > /var/log/dockerd.log 2>&1 &
fi
/usr/sbin/sshd
# Whoever is PID 1 buries orphans, which a waiting shell does, and ends only when it is told to.
trap 'exit 0' TERM
sleep infinity &
while true; do
    wait
done
