import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from foreign_videos import encoded, pictures, put_together, taken_apart

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video import isolation
from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.data.video.confined_process import ConfinedProcess
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.video.raw_video import Note
from twostream_ray.errors import DecodeError, EmptyClipError, TooLongError, TwoStreamError

CONTRACT = FlowContract(short_side_px=64)
CONFINED = (
    "import os, sys, time; from twostream_ray.data.video.confined_process import accept_confinement\n"
    "accept_confinement(os.fdopen(os.dup(1), 'wb'))"
)


def video(num_frames: int, *, size: int = 64) -> bytes:
    rng = np.random.default_rng(0)
    writer = ClipWriter(width=size, height=size, fps=Fraction(25))
    for _ in range(num_frames):
        writer.write(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
    return writer.finish()


def child_id() -> int:
    return isolation._pool.ids[-1]


def test_a_clip_prepared_apart_is_the_one_prepared_here_and_the_child_stays() -> None:
    content = video(12)
    apart = prepare_in_subprocess(content, CONTRACT, name="x", prove=True)
    here = prepare_clip(content, CONTRACT, name="x")
    assert apart == EncodedClip(**{name: getattr(here, name) for name in EncodedClip.__slots__})
    first = child_id()
    prepare_in_subprocess(content, CONTRACT, name="x")
    assert child_id() == first != os.getpid()


def test_no_credential_is_in_the_environment_of_the_process_that_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "WHATEVER_KEY", "HTTPS_PROXY")
    for name in secrets:
        monkeypatch.setenv(name, f"planted-{name}")
    isolation._pool.end_idle()
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    environment = Path(f"/proc/{child_id()}/environ").read_bytes()
    assert b"PATH=" in environment and b"planted" not in environment


def test_errors_keep_their_kind_and_their_one_line() -> None:
    with pytest.raises(DecodeError, match=r"x.mp4: not a readable video, 4 bytes"):
        prepare_in_subprocess(b"none", CONTRACT, name="x.mp4")
    with pytest.raises(EmptyClipError, match="x: a clip needs at least 2 frames, got 1"):
        prepare_in_subprocess(video(1), CONTRACT, name="x")
    with pytest.raises(TooLongError, match="x: a clip may have at most 5 frames, this has 6 or more: cut it"):
        prepare_in_subprocess(video(6), CONTRACT, name="x", max_frames=5)


@pytest.mark.slow
def test_a_crash_is_a_bad_video_and_the_next_one_gets_a_new_child() -> None:
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    crashed, long = child_id(), video(1500)
    threading.Timer(0.3, os.kill, (crashed, signal.SIGSEGV)).start()
    with pytest.raises(DecodeError, match=r"long: the decoder crashed \(killed by SIGSEGV\)"):
        prepare_in_subprocess(long, CONTRACT, name="long")
    assert prepare_in_subprocess(video(3), CONTRACT, name="x").num_frames == 3
    assert child_id() != crashed


@pytest.mark.slow
def test_a_child_killed_from_outside_is_no_fault_of_the_video() -> None:
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    killed, long = child_id(), video(1500)
    threading.Timer(0.3, os.kill, (killed, signal.SIGKILL)).start()
    assert prepare_in_subprocess(long, CONTRACT, name="long").num_frames == 1500
    assert child_id() != killed


def test_many_open_files_are_no_obstacle() -> None:
    files = [Path(os.devnull).open() for _ in range(1100)]  # noqa: SIM115
    try:
        isolation._pool.end_idle()
        assert prepare_in_subprocess(video(3), CONTRACT, name="x").num_frames == 3
    finally:
        for file in files:
            file.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["time.sleep(99)", "while True: pass"])
@pytest.mark.timeout(60)
def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    isolation._pool.end_idle()
    monkeypatch.setattr(isolation, "_SILENCE_S", 0.5)
    monkeypatch.setattr(isolation, "_CHILD", f"{CONFINED}\n{how}")
    with pytest.raises(DecodeError, match="x: the decoder hung, no frame came for"):
        prepare_in_subprocess(video(3), CONTRACT, name="x")
    monkeypatch.undo()
    assert prepare_in_subprocess(video(3), CONTRACT, name="x").num_frames == 3


@pytest.mark.slow
def test_a_clip_that_goes_on_and_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    monkeypatch.setattr(isolation, "_SECONDS", 0.2)
    monkeypatch.setattr(isolation, "_SECONDS_PER_FRAME", {"dis": 1e-6})
    with pytest.raises(DecodeError, match="x: decoding takes longer than 0 s"):
        prepare_in_subprocess(video(1500), CONTRACT, name="x", max_frames=2000)
    monkeypatch.undo()
    assert prepare_in_subprocess(video(3), CONTRACT, name="x").num_frames == 3


def test_notes_about_a_video_come_back_from_the_child() -> None:
    file = encoded("libx264", pictures(6), x264_params="interlaced=1")
    assert prepare_in_subprocess(file, CONTRACT, name="x", prove=True).notes == (Note.INTERLACED,)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_time_in_which_the_child_is_stopped_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    monkeypatch.setattr(isolation, "_SILENCE_S", 0.5)
    stopped = child_id()
    os.kill(stopped, signal.SIGSTOP)
    threading.Timer(2, os.kill, (stopped, signal.SIGCONT)).start()
    assert prepare_in_subprocess(video(3), CONTRACT, name="x").num_frames == 3
    assert child_id() == stopped


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_time_in_which_parent_and_child_are_stopped_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(video(400))
    code = (
        "from pathlib import Path; from twostream_ray.data.video import isolation\n"
        "from twostream_ray.data.flow import FlowContract\n"
        "content, contract = Path('video.mp4').read_bytes(), FlowContract(short_side_px=64)\n"
        "isolation.prepare_in_subprocess(content, contract, name='x')\n"
        "isolation._SILENCE_S = isolation._SECONDS = 0.8; isolation._SECONDS_PER_FRAME = {'dis': 0.01}\n"
        "print(isolation._pool.ids[-1], flush=True)\n"
        "print(isolation.prepare_in_subprocess(content, contract, name='x', max_frames=400).num_frames)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        both = (parent.pid, int(parent.stdout.readline()))
        time.sleep(0.2)
        for signalled, pause in ((signal.SIGSTOP, 6), (signal.SIGCONT, 0)):
            for process in both:
                os.kill(process, signalled)
            time.sleep(pause)
        assert parent.stdout.read() == "400\n"


@pytest.mark.timeout(60)
def test_a_child_that_does_not_start_is_no_fault_of_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    isolation._pool.end_idle()
    monkeypatch.setattr(isolation, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(TwoStreamError, match=r"does not start \(exit status 3\)") as error:
        prepare_in_subprocess(video(3), CONTRACT, name="x")
    assert not isinstance(error.value, DecodeError)


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_enormous_frames_are_refused_and_take_no_memory(when: str) -> None:
    isolation._pool.end_idle()
    coded = taken_apart(encoded("libvpx", pictures(8), container="webm", g="4"))
    index = [index for index, packet in enumerate(coded.packets) if packet.is_key][when == "in the middle"]
    content = bytearray(coded.packets[index].content)
    content[6:10] = (16383).to_bytes(2, "little") * 2
    packets = [*coded.packets[:index], replace(coded.packets[index], content=bytes(content))]
    file = put_together(coded, [*packets, *coded.packets[index + 1 :]], container="webm")
    with pytest.raises(DecodeError):
        prepare_in_subprocess(file, CONTRACT, name="x")
    status = Path(f"/proc/{child_id()}/status").read_text()
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kb < 400_000


def test_memory_beyond_measure_is_refused_to_the_child() -> None:
    process = ConfinedProcess(
        f"{CONFINED}\nimport numpy as np\nsys.stdin.read(1); np.ones(1 << 24)\n"
        "try: np.ones(1 << 26)\nexcept MemoryError: os.write(1, b'refused')\n"
    )
    process.wait_until_ready()
    process.allow_memory(1 << 28)
    process.stdin.write(b".")
    process.stdin.flush()
    assert process.read(7) == b"refused"
    process.end()


def test_a_script_without_a_main_guard_is_not_run_again_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(video(3))
    script = tmp_path / "script.py"
    script.write_text(
        "from twostream_ray.data.video import isolation\n"
        "from twostream_ray.data.flow import FlowContract\n"
        "print('run')\n"
        "content = open('video.mp4', 'rb').read()\n"
        "isolation.prepare_in_subprocess(content, FlowContract(short_side_px=64), name='x')\n"
        "print(isolation._pool.ids[-1])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=True)
    first, child = done.stdout.split()
    assert (first, done.stderr) == ("run", "")
    for _ in range(50):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


@pytest.mark.slow
def test_a_fork_has_a_child_of_its_own() -> None:
    prepare_in_subprocess(video(3), CONTRACT, name="x")
    mine = child_id()
    code = (
        "import os, sys; from twostream_ray.data.video import isolation\n"
        "from twostream_ray.data.flow import FlowContract\n"
        "content = sys.stdin.buffer.read(); contract = FlowContract(short_side_px=64)\n"
        "isolation.prepare_in_subprocess(content, contract, name='x')\n"
        "before = isolation._pool.ids[-1]\n"
        "if os.fork() == 0:\n"
        "    isolation.prepare_in_subprocess(content, contract, name='x')\n"
        "    os._exit(isolation._pool.ids[-1] == before)\n"
        "status = os.wait()[1]; isolation.prepare_in_subprocess(content, contract, name='x')\n"
        "sys.exit(bool(status) or isolation._pool.ids[-1] != before)\n"
    )
    subprocess.run([sys.executable, "-c", code], input=video(3), check=True)
    assert child_id() == mine
