# What a node shows of itself, in sections that `node.rs` reads.
echo '= devices'
command ls -1d /dev/infiniband/* /dev/gdrdrv /dev/nvidia* 2>&1
echo '= gpus'
nvidia-smi -L
echo '= locked memory'
ulimit -l
echo '= shared memory'
df --block-size=1 --output=size /dev/shm | tail -n 1
echo '= addresses'
hostname -I
echo '= primary address'
python3 -c 'import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("192.0.2.1", 9)); print(s.getsockname()[0])'
echo '= hostfile'
cat "$DSTACK_MPI_HOSTFILE"
echo '= variables'
python3 -c 'import json, os; [print(name, json.dumps(value), sep="=") for name, value in sorted(os.environ.items())]'
echo '= sum'
