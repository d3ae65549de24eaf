#!/bin/sh
# What the engine calls before a container starts that asks for GPUs. Like NVIDIA's, it gives the container the
# devices that its NVIDIA_VISIBLE_DEVICES names, and the tool; and it writes down that it was called.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
state=$(cat)
field() {
    printf '%s' "$state" | sed -n "s/.*\"$1\":\"\\{0,1\\}\\([^,\"}]*\\).*/\\1/p"
}
bundle=$(field bundle)
pid=$(field pid)
rootfs=$(sed -n 's/.*"root":{[^}]*"path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
visible=$(sed -n 's/.*"NVIDIA_VISIBLE_DEVICES=\([^"]*\)".*/\1/p' "$bundle/config.json")
capabilities=$(sed -n 's/.*"NVIDIA_DRIVER_CAPABILITIES=\([^"]*\)".*/\1/p' "$bundle/config.json")
echo "$1 container=$(field id) visible=$visible capabilities=$capabilities" >> /var/log/nvidia-hook.log
case $visible in '' | void | none) exit 0 ;; esac

devices='nvidiactl nvidia-uvm nvidia-uvm-tools'
while IFS='|' read -r index _ _ uuid _; do
    case ",$visible," in
    *,all,* | *,"$index",* | *,"$uuid",*) devices="$devices nvidia$index" ;;
    esac
done < /etc/nvidia/gpus
for device in $devices; do
    nsenter --mount="/proc/$pid/ns/mnt" mknod -m 666 "$rootfs/dev/$device" c 1 3
done
mkdir -p "$rootfs/etc/nvidia" "$rootfs/usr/bin"
cp /etc/nvidia/gpus "$rootfs/etc/nvidia/gpus"
cp /usr/bin/nvidia-smi "$rootfs/usr/bin/nvidia-smi"
