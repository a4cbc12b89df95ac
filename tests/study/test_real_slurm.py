"""Studies under a real Slurm on this machine: two nodes, preemption, a lost node, and scancel.

Needs slurmctld, slurmd, munged and the clients (Debian: slurmctld slurmd slurm-client munge), and root.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from support import toy_study

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "squeue", "scontrol")
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=15
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE OverSubscribe=NO
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""  # noqa: E501
WAITS = 600  # seconds for anything to happen


class Cluster:
    """The daemons of one cluster in a folder, and commands under its configuration."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.daemons = folder, {}
        ports = _free_ports(3)
        host = socket.gethostname().partition(".")[0]
        names = dict(zip(("port", "port1", "port2"), ports, strict=True))
        self.config = folder / "slurm.conf"
        self.config.write_text(CONFIG.format(folder=folder, host=host, **names))
        self.environment = {**os.environ, "SLURM_CONF": str(self.config)}
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir()

    def start(self, name: str, *command: str) -> None:
        """Starts a daemon in the foreground; its output goes to a file of the folder."""
        with (self.folder / f"{name}.out").open("a") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        """Starts the slurmd of one node."""
        self.start(name, shutil.which("slurmd", path=PATH), "-D", "-N", name)

    def ask(self, *command: str) -> str:
        """Returns the output of a command of Slurm."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip()

    def idle(self) -> bool:
        """Whether both nodes wait for work."""
        return self.ask("sinfo", "--noheader", "--format=%n %T", "--Node").count("idle") >= 2

    def stop(self) -> None:
        """Ends all daemons and what they have started."""
        self.ask("scancel", "--user=root")
        time.sleep(2)
        for process in self.daemons.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def eventually(true, what: str) -> None:
    """Waits until `true()`; fails, naming `what`, after WAITS seconds."""
    deadline = time.monotonic() + WAITS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.getuid():
        pytest.skip("daemons of Slurm need root")
    folder = tmp_path_factory.mktemp("slurm")
    here = Cluster(folder)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munged = shutil.which("munged", path=PATH)
    here.start(
        "munge",
        munged,
        "--foreground",
        "--force",
        f"--socket={folder}/munge.socket",
        f"--key-file={key}",
        f"--pid-file={folder}/munge.pid",
        f"--seed-file={folder}/munge.seed",
        f"--log-file={folder}/munge.log",
    )
    eventually((folder / "munge.socket").exists, "munged makes no socket")
    here.start("slurmctld", shutil.which("slurmctld", path=PATH), "-D", "-c")
    here.start_node("n1")
    here.start_node("n2")
    try:
        eventually(here.idle, f"the nodes do not come up; see {folder}")
        yield here
    finally:
        here.stop()


TRAINER = """
import os, pathlib, signal, sys, time
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
here = pathlib.Path(os.environ["TOY_JOURNAL"]).parent
name, process = pathlib.Path(flags["workdir"]).name, os.environ.get("SLURM_PROCID", "0")
starts = here / f"starts-{name}.{process}"
with starts.open("a") as file:
    file.write(os.environ.get("SLURMD_NODENAME", "?") + " " + os.environ.get("SLURM_NTASKS", "?") + "\\n")

def save(*_):
    (here / f"saved-{name}.{process}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
waits = here / f"wait-{name}"
while waits.exists() and len(starts.read_text().splitlines()) == 1:
    time.sleep(0.1)
"""


def lose(cluster, node: str) -> None:
    """Kills all of a node at once: its daemon, the keepers of its steps, then their tasks."""
    os.killpg(cluster.daemons[node].pid, signal.SIGKILL)
    tasks, keepers = [], []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURMD_NODENAME={node}".encode() in (process / "environ").read_bytes().split(
                b"\0"
            ):
                tasks.append(int(process.name))
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if b"slurmstepd" in pathlib.Path("/proc", parent, "cmdline").read_bytes():
                    keepers.append(int(parent))
    assert tasks
    assert keepers
    for pid in (*keepers, *tasks):  # a keeper that outlives its task reports a failure of the task
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def toy(tmp_path, cluster):
    """The toy study; a run whose `wait-NAME` exists waits in its first start."""
    toy_study.make(tmp_path)
    tuning = toy_study.STUDY.index("    tuning=")
    whole = toy_study.STUDY[:tuning] + toy_study.STUDY[toy_study.STUDY.index("    skip=") :]
    (tmp_path / "study_file.py").write_text(whole.replace("seeds=(0, 1, 2)", "seeds=(0, 1)"))
    trainer = TRAINER + toy_study.TRAIN
    (tmp_path / "train.py").write_text(trainer)
    return tmp_path


def submitted(toy, cluster, *flags: str) -> subprocess.CompletedProcess:
    """Submits the study; its tasks have the environment of this command."""
    path = f"{pathlib.Path(sys.executable).parent}:{PATH}"
    return toy_study.run(toy, "--launch=slurm", *flags, SLURM_CONF=str(cluster.config), PATH=path)


def starts(toy, name: str, process: int = 0) -> list[str]:
    path = toy / f"starts-{name}.{process}"
    return path.read_text().splitlines() if path.exists() else []


def ended(toy, cluster) -> None:
    """Waits for the report of the study."""
    eventually(lambda: not cluster.ask("squeue", "--noheader"), "jobs stay in the queue")


def logs(toy) -> str:
    return "\n".join(f"{p.name}: {p.read_text()}" for p in sorted((toy / "out").rglob("*.log")))


pytestmark = pytest.mark.slow


def test_an_array_of_runs_ends_in_rows_and_a_report(toy, cluster):
    (toy / "wait-rope-s0").touch()
    done = submitted(toy, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    second = submitted(toy, cluster)
    assert second.returncode == 2, logs(toy)
    assert "are queued or at work" in second.stderr
    (toy / "wait-rope-s0").unlink()
    ended(toy, cluster)
    assert (toy / "out" / "rows.jsonl").exists(), logs(toy)
    assert (toy / "out" / "report.html").exists(), logs(toy)
    assert len(toy_study.trained(toy)) == 4
    again = submitted(toy, cluster)
    assert again.returncode == 0, again.stderr
    ended(toy, cluster)
    assert len(toy_study.trained(toy)) == 4  # only the report is written again


def test_a_run_of_two_nodes_is_one_run_of_two_processes(toy, cluster):
    done = submitted(toy, cluster, "--nodes=2")
    assert done.returncode == 0, done.stdout + done.stderr
    ended(toy, cluster)
    nodes = [starts(toy, "rope-s0", process) for process in (0, 1)]
    assert sorted(line for each in nodes for line in each) == ["n1 2", "n2 2"], logs(toy)
    assert (toy / "out" / "report.html").exists(), logs(toy)


def test_a_preempted_run_saves_is_requeued_and_ends(toy, cluster):
    (toy / "wait-rope-s0").touch()
    assert submitted(toy, cluster, "--cpus=2").returncode == 0
    eventually(lambda: starts(toy, "rope-s0"), "the run does not start")
    command = (
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=2",
        "--exclusive",
        "--wrap=sleep 5",
        "--output=/dev/null",
    )
    assert cluster.ask(*command).isdigit()
    ended(toy, cluster)
    assert (toy / "saved-rope-s0.0").exists(), logs(toy)
    assert len(starts(toy, "rope-s0")) == 2
    assert (toy / "out" / "report.html").exists(), logs(toy)


def test_a_run_on_a_node_that_is_lost_starts_again_elsewhere(toy, cluster):
    (toy / "wait-rope-s0").touch()
    assert submitted(toy, cluster, "--cpus=2").returncode == 0
    eventually(lambda: starts(toy, "rope-s0"), "the run does not start")
    (node,) = {line.split()[0] for line in starts(toy, "rope-s0")}
    lose(cluster, node)
    try:
        ended(toy, cluster)
        assert len({line.split()[0] for line in starts(toy, "rope-s0")}) == 2, logs(toy)
        assert (toy / "out" / "report.html").exists(), logs(toy)
    finally:
        cluster.daemons[node].wait()
        cluster.start_node(node)
        eventually(cluster.idle, "the node does not come back")


def test_a_cancelled_run_stays_out_of_the_queue(toy, cluster):
    (toy / "wait-rope-s0").touch()
    assert submitted(toy, cluster, "--cpus=2").returncode == 0
    eventually(lambda: starts(toy, "rope-s0"), "the run does not start")
    jobs = cluster.ask("squeue", "--noheader", "--format=%A %j").splitlines()
    runs = next(line.split()[0] for line in jobs if line.endswith("out-runs"))
    cluster.ask("scancel", f"{runs}_1")
    ended(toy, cluster)
    assert len(starts(toy, "rope-s0")) == 1
    report = (toy / "out" / "slurm" / "out-report-1.log").read_text()
    assert "1 runs failed or have not ended: rope-s0" in report, logs(toy)


def test_the_job_script_trains_one_run_in_two_processes(tmp_path, cluster):
    for name in ("n1", "n2"):
        try:
            socket.gethostbyname(name)
        except OSError:
            pytest.skip(f"{name} has no address, and JAX asks for it: add 127.0.0.1 to /etc/hosts")
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(f"document {number} " * 200)
    script = toy_study.ROOT / "scripts" / "slurm" / "train.sbatch"
    resources = ("--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1")
    settings = {
        "data.corpus": "text_folder",
        "data.folder": text,
        "data.data_dir": tmp_path / "data",
        "train.steps": 4,
        "model.num_layers": 1,
    }
    done = subprocess.run(
        [
            "sbatch",
            "--parsable",
            *resources,
            f"--output={tmp_path}/job.log",
            script,
            "--config=configs/smoke.py:rope",
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
        ],
        cwd=toy_study.ROOT,
        capture_output=True,
        text=True,
        env={
            **cluster.environment,
            "VENV": str(pathlib.Path(sys.prefix)),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "PYTHONPATH": str(toy_study.ROOT),
        },
    )
    assert done.returncode == 0, done.stderr
    ended(tmp_path, cluster)
    log = (tmp_path / "job.log").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["finished"], record["processes"]) == (True, 2), log
