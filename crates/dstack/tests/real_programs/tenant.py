# What a hostile tenant tries as root of its container. The argument says which; every one of them ends by itself.
import ctypes
import json
import os
import socket
import stat
import sys
import time

RUN = "/dstack/task"
LOGS = RUN + "/logs"
PROGRAM = "/dstack/bin/dstack-agent"
# A file of the host, the agent's socket there, and ports worth a try: all of them the tenant may know.
SECRET, SOCKET = os.environ["HOST_SECRET"], os.environ["HOST_SOCKET"]
PORTS = [int(port) for port in os.environ["HOST_PORTS"].split()]
PATIENCE = 30


def attempt(what, *args):
    try:
        return what(*args)
    except (OSError, ValueError) as error:
        return error


def talk(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as peer:
        peer.settimeout(1)
        peer.connect(address)
        # As the server would begin, and nonsense after it.
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + b"\xff" * 100 + b"\n")
        return attempt(peer.recv, 1000)


def unix_sockets():
    for folder, folders, files in os.walk("/"):
        if folder in ("/proc", "/sys"):
            folders.clear()
        for name in files:
            path = folder + "/" + name
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                yield path
    with open("/proc/net/unix") as table:
        for line in table.readlines()[1:]:
            path = line.split()[7:]
            if path:
                yield path[0]


def listening():
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in lines.readlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    yield int(fields[1].rsplit(":", 1)[1], 16)


def gateway():
    with open("/proc/net/route") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000":
                return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])
    return "127.0.0.1"


def sockets():
    """Talks to whatever listens."""
    for path in sorted(set(unix_sockets()) | {SOCKET}):
        address = "\0" + path[1:] if path.startswith("@") else path
        answer = attempt(talk, socket.AF_UNIX, address)
        if isinstance(answer, bytes) or isinstance(answer, TimeoutError):
            print("unix", path, flush=True)
    for host, port in sorted({("127.0.0.1", port) for port in listening()} | {(gateway(), port) for port in PORTS}):
        answer = attempt(talk, socket.AF_INET, (host, port))
        print("tcp", host, port, answer if isinstance(answer, bytes) else type(answer).__name__, flush=True)
    print("metadata", type(attempt(talk, socket.AF_INET, ("169.254.169.254", 80))).__name__)
    for path in (PROGRAM, SECRET, SOCKET):
        print("write", type(attempt(open, path, "r+b")).__name__)
    print("orders", os.path.exists(RUN + "/job.json"))
    sys.exit(4)


def put_link(target, path):
    attempt(os.unlink, path)
    os.symlink(target, path)


def evict_agent():
    """Takes the supervisor's socket away, and leaves the agent no connection to it."""
    os.rename(RUN + "/job.sock", RUN + "/old.sock")
    peers = [socket.socket(socket.AF_UNIX) for _ in range(12)]
    for peer in peers:
        peer.connect(RUN + "/old.sock")
        peer.settimeout(PATIENCE)
    return peers


def links():
    """Puts links to the host where the agent reads, writes, connects and removes."""
    print("before", flush=True)
    peers = evict_agent()
    os.symlink(SOCKET, RUN + "/job.sock")
    for name in os.listdir(LOGS) + ["%020d.%s" % (start, kind) for start in (8, 300, 4000) for kind in ("log", "idx")]:
        put_link(SECRET, LOGS + "/" + name)
    # The supervisor renames the first of these to the second when all is over.
    for name in ("exit.json.new", "exit.json", "supervisor.log", "lock", "started", "job.json", "job.json.tmp"):
        put_link(SECRET, RUN + "/" + name)
    for _ in range(20):
        print("between", flush=True)
        time.sleep(0.05)
    os.rename(LOGS, RUN + "/moved")
    os.symlink(os.path.dirname(SECRET), LOGS)
    for _ in range(20):
        print("after", flush=True)
        time.sleep(0.05)
    sys.exit(len(peers))


def words():
    """Speaks to the agent in the supervisor's place."""
    print("before", flush=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        peers = evict_agent()
        listener.bind(RUN + "/job.sock")
        listener.listen(50)
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += peers[-1].recv(65536)
        status = json.loads(greeting.splitlines()[0])
        wild = dict(status, pid=-1, log_end=2**64 - 1, started_at="9999-01-01T00:00:00Z", stage="ended")
        wild.update(working_dir="/" * 20000, username="\x1b[2J" * 1000, warnings=["\x1b]0;" + "w" * 1000] * 100)
        lie = {"reason": "host_interrupted", "exit_status": 0, "signal": None, "oom_killed": False}
        lie.update(message="m" * 50000, finished_at="-009999-06-01T00:00:00Z")
        lines = lambda value, times: (json.dumps(value) + "\n").encode() * times
        phrases = [
            b"\xff\xfe\0nonsense\n" * 1000,
            b"{" * 20_000_000,
            b"[" * 100_000 + b"\n",
            lines(dict(status, stage="winning"), 1),
            lines(dict(wild, exit=lie), 10),
            b"".join(lines(dict(wild, username=str(number)), 1) for number in range(40)),
            b"\n" * 1000,
        ]
        for phrase in phrases:
            agent, _ = listener.accept()
            agent.settimeout(5)
            attempt(agent.sendall, phrase)
            agent.close()
        # Drop by drop, and then a sudden end.
        agent, _ = listener.accept()
        for byte in greeting[:20]:
            attempt(agent.send, bytes([byte]))
            time.sleep(0.05)
    print("after", flush=True)
    sys.exit(6)


def fill():
    """Fills the folder with what is long, deep, many, or no file at all."""
    print("before", flush=True)
    with open(RUN + "/junk", "wb") as junk:
        for _ in range(64):
            junk.write(os.urandom(1 << 20))
    for number in range(20_000):
        with open("%s/%020d.log" % (LOGS, 10**9 + number), "wb") as segment:
            segment.write(b"x" * (number % 2))
    for name in ["%020d.idx" % 0, "%020d.log" % 10**8, "9" * 20 + ".log"]:
        with open(LOGS + "/" + name, "ab") as sparse:
            sparse.truncate(1 << 42)
    attempt(os.mkfifo, "%s/%020d.log" % (LOGS, 10**7))
    attempt(os.mkfifo, "%s/%020d.log.idx" % (LOGS, 10**7))
    attempt(os.mknod, "%s/%020d.log" % (LOGS, 10**6), stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.chdir(RUN)
    for _ in range(4000):
        os.mkdir("deep")
        os.chdir("deep")
    print("after", flush=True)
    sys.exit(7)


def trace():
    """Ends PID 1, which is the supervisor, through the debugger's door where the front one is closed."""
    print("before", flush=True)
    time.sleep(0.5)
    attempt(os.kill, 1, 9)
    seize, exit_kill = 0x4206, 0x00100000
    libc = ctypes.CDLL(None, use_errno=True)
    traced = libc.ptrace(seize, 1, None, ctypes.c_void_p(exit_kill)) == 0
    print("traced", traced, flush=True)
    # What was traced dies with who traced it.
    os._exit(8)


{"sockets": sockets, "links": links, "words": words, "fill": fill, "trace": trace}[sys.argv[1]]()
