"""A SLURM of our own on this machine: one controller, two nodes, a munge of its own; nothing outside its folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "munged", "mungekey")
NODES = ("n1", "n2")
SBIN = "/usr/sbin:/sbin"


def absent() -> str:
    """What is missing for a SLURM here, or nothing."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}; Debian has them in slurmctld, slurmd, slurm-client and munge"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Started and stopped by a fixture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o755)
        os.chmod(self.folder / "munge", 0o700)
        key = self.folder / "munge" / "key"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], env=self.env, check=True, timeout=60)
        ports = _free_ports(1 + len(NODES))
        (self.folder / "slurm.conf").write_text(self._configuration(ports))
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge/socket", f"--key-file={key}",
            f"--pid-file={self.folder}/munge/pid", f"--log-file={self.folder}/munge/log",
            f"--seed-file={self.folder}/munge/seed", "--num-threads=2",
        )  # fmt: skip
        self._wait(lambda: (self.folder / "munge" / "socket").exists(), "munge's socket")
        self._daemon("slurmctld", "-D", "-c")
        self._wait(lambda: self.run("scontrol", "ping").returncode == 0, "the controller")
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.run("sinfo", "-h", "-o", "%T").stdout.split() == ["idle"], "its nodes")

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """As if its plug were pulled: the daemon and every process of its jobs, by SIGKILL."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid, words in _processes():
            own = f"SLURMD_NODENAME={node}\0" in _environment(pid)  # a task; a step manager has its daemon's log open
            if (own and str(self.folder) in _environment(pid)) or (
                words.startswith("slurmstepd") and _opens(pid, self.folder / f"{node}.log")
            ):
                _kill(pid)

    def kill_task(self, job: str) -> None:
        """Kill the processes of a task `12_3`, unseen by SLURM."""
        array, _, index = job.partition("_")
        words = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"} if index else {f"SLURM_JOB_ID={array}"}
        for pid, _ in _processes():
            found = set(_environment(pid).split("\0"))
            if words <= found and f"SLURM_CONF={self.folder}/slurm.conf" in found:
                _kill(pid)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=180)

    def stop(self) -> None:
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid, _ in _processes():  # step managers and tasks that outlived their daemons
            if f"SLURM_CONF={self.folder}" in _environment(pid) and pid != os.getpid():
                _kill(pid)

    def _daemon(self, *command: str, name: str = "") -> None:
        with (self.folder / f"{name or command[0]}.out").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=_die_with_us,
            )  # fmt: skip
        self.daemons[name or command[0]] = process

    def _wait(self, ready: object, what: str, seconds: float = 180.0) -> None:
        until = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            dead = [name for name, one in self.daemons.items() if one.poll() is not None]
            if dead or time.monotonic() > until:
                log = "".join((self.folder / f"{name}.out").read_text()[-600:] for name in dead or self.daemons)
                raise RuntimeError(f"waited for {what}: {', '.join(dead) or 'nothing'} died. {log}")
            time.sleep(0.2)

    def _configuration(self, ports: list[int]) -> str:
        here, host = self.folder, socket.gethostname()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        return f"""
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge/socket
CredType=cred/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool/%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/%n.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=300
SlurmctldTimeout=300
KillWait=30
MinJobAge=300
OverTimeLimit=0
MaxArraySize=3
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes=n2 MaxTime=INFINITE State=UP
"""


def _die_with_us() -> None:
    """Even where the tests are killed, no daemon stays."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    holders = [socket.socket() for _ in range(count)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def _processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except (OSError, UnicodeDecodeError):
                continue
    return found


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _opens(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
