"""`snnp ipi` against a server of the i-PI protocol: ASE's here, i-PI itself where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketIOCalculator
from ase.io import write
from typer.testing import CliRunner

from snnp.cli.drivers.ipi import serve
from snnp.cli.main import app
from snnp_ase import SNNPCalculator

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # of ASE's server, which leaves its socket to the end


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _client(atoms: Atoms, failures: list[Any], **where: Any) -> threading.Thread:
    """A thread that serves as `snnp ipi` does; what it gives goes to `failures`."""
    thread = threading.Thread(
        target=lambda: failures.append(serve(SNNPCalculator("snnp-si", dtype="float64"), atoms, **where)), daemon=True
    )
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_a_server_gets_what_the_calculator_gives(kind: str) -> None:
    atoms, said = bulk("Si", cubic=True), []
    atoms.rattle(0.05, seed=1)
    where: dict[str, Any] = {"unix": f"snnp-{os.getpid()}"} if kind == "unix" else {"port": _free_port()}
    server = {"unixsocket": where["unix"]} if kind == "unix" else {"port": where["port"]}
    with SocketIOCalculator(timeout=60, **server) as calculator:
        thread = _client(bulk("Si", cubic=True), said, **where)
        direct = SNNPCalculator("snnp-si", dtype="float64")
        for step in range(3):
            atoms.calc = calculator
            found = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
            atoms.calc = direct
            assert found[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
            np.testing.assert_allclose(found[1], atoms.get_forces(), atol=1e-8)
            np.testing.assert_allclose(found[2], atoms.get_stress(), atol=1e-9)
            atoms.set_cell(atoms.cell * (1.01 + 0.01 * step), scale_atoms=True)
    thread.join(timeout=60)
    assert said == [(3, None)]


def test_a_server_with_other_atoms_is_told() -> None:
    atoms, said, port = bulk("Si"), [], _free_port()
    atoms.calc = SocketIOCalculator(port=port, timeout=60)
    thread = _client(bulk("Si", cubic=True), said, port=port)
    with pytest.raises(OSError):  # the server sees that its client has gone
        atoms.get_potential_energy()
    thread.join(timeout=60)
    atoms.calc.close()
    assert "another number of atoms than the 8 of Si8" in said[0][1]


def test_atoms_on_top_of_each_other_end_the_client_in_words() -> None:
    atoms, said, port = bulk("Si"), [], _free_port()
    atoms.positions[1] = atoms.positions[0] + 0.01
    atoms.calc = SocketIOCalculator(port=port, timeout=60)
    thread = _client(bulk("Si"), said, port=port)
    with pytest.raises(OSError):  # the server sees that its client has gone
        atoms.get_potential_energy()
    thread.join(timeout=60)
    atoms.calc.close()
    assert "overlap" in said[0][1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--port", "1"], "nobody listens at localhost:1"),
        (["--unix", "nobody-is-here"], "nobody listens at /tmp/ipi_nobody-is-here"),
        (["--port", "70000"], "--port must lie between 1 and 65535, got 70000"),
        (["--unix", "/tmp/ipi_x"], "is no name of a socket"),
    ],
)
def test_what_cannot_be_reached_is_named(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["ipi", "snnp-si", "diamond:Si:1x1x1", *words])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())


def test_an_unknown_element_is_named_before_connecting() -> None:
    result = CliRunner().invoke(app, ["ipi", "snnp-si", "fcc:Cu:1x1x1", "--port", "1"])
    assert result.exit_code == 1
    assert "Cu" in result.stderr


_INPUT = """<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='1' filename='out'> [ step, potential{electronvolt}, conserved ] </properties>
  </output>
  <total_steps>5</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket mode='unix' name='driver' pbc='false'><address>NAME</address><timeout>60</timeout></ffsocket>
  <system>
    <initialize nbeads='2'>
      <file mode='ase' units='automatic'> start.xyz </file><velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces><force forcefield='driver'></force></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'><dynamics mode='nve'><timestep units='femtosecond'> 0.5 </timestep></dynamics></motion>
  </system>
</simulation>
"""


@pytest.mark.slow
def test_path_integrals_by_i_pi(tmp_path: Path) -> None:
    """Five steps of two beads by i-PI, with the program that $SNNP_IPI or the path names."""
    program = os.environ.get("SNNP_IPI") or shutil.which("i-pi")
    if program is None:
        pytest.skip("i-PI is not installed: pip install -c constraints.txt ipi, in an environment of its own")
    methane = molecule("CH4", vacuum=10.0)
    write(tmp_path / "start.xyz", methane)
    name = f"snnp-test-{os.getpid()}"
    (tmp_path / "input.xml").write_text(_INPUT.replace("NAME", name))
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([program, "input.xml"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(300):
            if Path(f"/tmp/ipi_{name}").exists() or server.poll() is not None:
                break
            threading.Event().wait(0.2)
        code = "from snnp.cli.main import run; run()"
        command = [sys.executable, "-c", code, "ipi", "snnp-organic", "start.xyz", "--unix", name]
        client = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert client.returncode == 0, client.stderr + (tmp_path / "log").read_text()
        assert server.wait(timeout=60) == 0, (tmp_path / "log").read_text()
    finally:
        server.kill()
        server.wait()
    table = np.loadtxt(tmp_path / "run.out")
    assert len(table) == 6
    methane.calc = SNNPCalculator("snnp-organic")
    assert table[0, 1] == pytest.approx(methane.get_potential_energy(), abs=1e-3)
    assert np.ptp(table[:, 2]) < 1e-4  # Hartree: energy is conserved
