"""Every block of docs/clients.md, run unchanged except for the address."""

import pytest
import trio
from fakes.client_docs import BLOCKS
from fakes.process import environment
from fakes.scene import OFFLINE, PYTHON, SCENES


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
async def test_example_runs(cortex, tmp_path, block):
    """It prints the capital of Georgia."""
    path = block.written(tmp_path, cortex.url)
    command = {"python": [PYTHON, path], "javascript": ["node", path], "sh": ["bash", path]}[block.language]
    (tmp_path / "node_modules").symlink_to(SCENES / "js" / "node_modules")
    done = await trio.run_process(list(map(str, command)), capture_stdout=True, env=environment(**OFFLINE))

    assert "Tbil" in done.stdout.decode()
