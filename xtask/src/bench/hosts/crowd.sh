# Many light hosts in one container: an address, a process tree and a place for the agent's things each, and one
# engine for all. Arguments: SUBNET (without its last number), FIRST, COUNT.
set -e
subnet=$1 first=$2 count=$3
for group in /sys/fs/cgroup/*; do mount -o remount,bind,rw "$group"; done
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
mkdir -p /run/sshd /var/lib/dstack /usr/local/lib/dstack
dockerd < /dev/null > /var/log/dockerd.log 2>&1 &
for number in $(seq "$first" $((first + count - 1))); do
    ip address replace "$subnet.$number/24" dev eth0
    unshare --mount --pid --fork --mount-proc sh -ec "
        mount -t tmpfs none /var/lib/dstack
        exec /usr/sbin/sshd -D -o ListenAddress=$subnet.$number
    " &
done
trap 'exit 0' TERM
while true; do
    wait
done
