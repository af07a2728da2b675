"""`cortex alias`, `plan` and `audit` before a real gateway, and before none."""

import json
import shutil
import time

import httpx
import pytest
from click.testing import CliRunner
from fakes.patience import SAFETY_NET_S
from fakes.process import cortex, running_cortex

from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias
from gateway.cli import alias_edit, main
from gateway.cli.alias_edit import os_user
from gateway.config.load import load

SMALL, MIDDLE, LARGE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "Qwen/Qwen3-14B"


class Operator:
    """Somebody at a terminal, with a cortex.toml."""

    def __init__(self, folder):
        self.config = folder / "cortex.toml"
        self.models = folder / "models.toml"

    def __call__(self, *arguments, **env):
        """A command, in this process: it is the command line that is tested, not Python's start."""
        environment = {"CORTEX_CONFIG": str(self.config), "COLUMNS": "200"} | env
        return CliRunner().invoke(main.main, [str(each) for each in arguments], env=environment)

    def done(self, *arguments, code=0, **env):
        """The same, seen to end like this; what it said."""
        result = self(*arguments, **env)
        assert result.exit_code == code, result.output
        return result.output

    @property
    def records(self):
        return CatalogueFiles.from_settings(load(self.config, {}).settings)

    def lines(self):
        """The audit trail, oldest first."""
        return [line.fields for line in self.records.audit_log.newest_first()][::-1]

    def edit(self, data):
        """By hand: an editor's new file, renamed over the old one."""
        new = self.models.with_suffix(".new")
        new.write_bytes(data)
        new.rename(self.models)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A gateway before three simulated neurons; one for all tests of this file."""
    folder = tmp_path_factory.mktemp("house")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 200) as process:
        process.read_until("Ctrl-C ends it")
        yield Operator(folder)
        process.interrupt()
        process.end()


@pytest.fixture
def operator(house):
    """At that gateway, with the file as the demo wrote it, before and after."""
    original = house.models.read_bytes()
    yield house
    if house.models.read_bytes() != original:
        house.edit(original)
        house.done("alias", "set", "helexa/large", LARGE)  # says nothing new, and so waits for nothing
    # What is still on its way, to its target or into the trail, is none of the next test's.
    wait_until(lambda: in_force(house) == digest_of(original) and not health(house).get("swaps"))
    wait_until(lambda: house.lines()[-1]["file"] == digest_of(original))


def wait_until(condition):
    deadline = time.monotonic() + SAFETY_NET_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def health(operator):
    return alias_edit.AliasCommands.of(load(operator.config, {}).settings, print).health()


def in_force(operator):
    return health(operator)["catalogue"]["digest"]


@pytest.fixture
def alone(tmp_path, house):
    """The same file, and no gateway at the address."""
    shutil.copy(house.models, tmp_path / "models.toml")
    config = house.config.read_text()
    for key in ("listen", "metrics_listen"):
        config = "\n".join(
            f'{key} = "127.0.0.1:{9 if key == "listen" else 10}"' if line.startswith(f"{key} =") else line
            for line in config.splitlines()
        )
    (tmp_path / "cortex.toml").write_text(config)
    return Operator(tmp_path)


# Set and rollback.


def test_set_and_rollback_leave_the_file_byte_identical(operator):
    """Comments and all; each is in force when it says so."""
    before = operator.models.read_bytes()

    said = operator.done("alias", "set", "helexa/small", MIDDLE, "--wait")
    assert f"~alias helexa/small: {SMALL} -> {MIDDLE}" in said
    assert "in force: generation " in said
    assert in_force(operator) == digest_of(operator.models.read_bytes())
    operator.done("alias", "rollback", "--wait")

    assert operator.models.read_bytes() == before
    assert in_force(operator) == digest_of(before)


def test_rollback_without_waiting_in_between_is_byte_identical(operator):
    """However quickly the one follows the other; twice is there and back."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    changed = operator.models.read_bytes()

    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == before
    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == changed
    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == before


def test_wait_returns_when_a_cold_target_has_been_loaded(operator):
    """However long that takes: afterwards it is what the alias stands for."""
    operator.done("alias", "set", "helexa/small", COLD, "--wait")

    state = next(
        each["state"]
        for each in json.loads(operator.done("alias", "list", "--json"))["aliases"]
        if each["name"] == "helexa/small"
    )
    assert state == "in force"


def test_way_to_a_cold_target_is_told_step_by_step(operator, monkeypatch):
    """Each thing it waits for once, and that it has moved; the gateway's answers are ours here."""
    swap = {"alias": "tier", "in_force": "A", "wanted": "B", "state": "warming", "phase": "load", "model": "B"}
    swap |= {"reason": None, "elapsed_s": 1.0, "allowed_s": 9.0}
    steps = [swap, swap | {"elapsed_s": 2.0}, swap | {"phase": "probe"}, None]
    answers = iter([{"catalogue": {"generation": 7}, "swaps": [step] if step else []} for step in steps])
    monkeypatch.setattr(alias_edit.api_client, "get", lambda *_: next(answers))
    monkeypatch.setattr(alias_edit, "SWAP_LOOK_S", 0)
    said = []
    desk = alias_edit.AliasCommands.of(load(operator.config, {}).settings, said.append)

    assert desk._swaps(None, next(answers), {"tier"}, wait=True) == alias_edit.DONE
    assert said == [
        "tier stays on A until B is loaded",
        "tier stays on A until B is probed",
        "tier has moved: generation 7",
    ]


def test_swap_that_fails_is_told_with_its_reason(operator):
    """The file says so, the alias stays: exit code 3."""
    operator.edit(operator.models.read_bytes() + b'\n[[models]]\nid = "huge"\nharness = "llamacpp"\nmin_devices = 9\n')

    said = operator.done("alias", "set", "helexa/small", "huge", "--wait", code=3)

    assert f"helexa/small stays on {SMALL}: huge could not be warmed: " in said
    assert "could not be warmed" in operator.done("alias", "show", "helexa/small")


def test_set_without_the_token_looks_at_health_instead(operator):
    """Whoever may write the file may change an alias."""
    config = operator.config.read_text()
    without = operator.config.with_name("without.toml")
    without.write_text("\n".join(line for line in config.splitlines() if not line.startswith("token")))

    said = operator.done("alias", "set", "helexa/small", MIDDLE, "-c", without)

    assert "in force: generation " in said
    assert "warning" not in said


def test_wrong_token_is_a_warning(operator):
    """The gateway notices by itself."""
    said = operator.done("alias", "set", "helexa/small", MIDDLE, CORTEX_ADMIN__TOKEN="wrong")

    assert "warning: " in said
    assert "in force: generation " in said


def test_set_to_what_it_is_writes_nothing(operator):
    """And is no error."""
    before = operator.models.stat().st_mtime_ns

    assert "says so already" in operator.done("alias", "set", "helexa/small", SMALL)
    assert operator.models.stat().st_mtime_ns == before


def test_weight_shares_the_alias(operator):
    """The old target keeps the rest; all of it again, and the line is as it was."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE, "--weight", 10)

    shares = f'[{{ model = "{SMALL}", weight = 90 }}, {{ model = "{MIDDLE}", weight = 10 }}]'
    assert f'"helexa/small" = {{ targets = {shares} }}' in operator.models.read_text()
    operator.done("alias", "set", "helexa/small", SMALL)
    assert operator.models.read_bytes() == before


def test_cold_goes_into_the_file(operator):
    """Everything the command does, an edit can do."""
    operator.done("alias", "set", "helexa/small", LARGE, "--cold")

    assert f'"helexa/small" = {{ target = "{LARGE}", swap = "cold" }}' in operator.models.read_text()


def test_target_nobody_describes_is_a_warning(operator):
    """It may be loaded somewhere."""
    assert "warning: no [[models]] table describes mystery" in operator.done("alias", "set", "new/one", "mystery")


def test_remove_takes_the_alias_out(operator):
    """Its requests get 404 from then on."""
    said = operator.done("alias", "remove", "helexa/balanced")

    assert f"-alias helexa/balanced -> {MIDDLE}" in said
    assert "helexa/balanced" not in operator.done("alias", "list")


# Refusals: nothing is written.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("set", "helexa/small", "helexa/large"), "names an alias, not a model"),
        (("set", "helexa/small", "helexa/small"), "names an alias, not a model"),
        (("set", "helexa/small", ""), "aliases.helexa/small"),
        (("set", "new/one", SMALL, "--weight", "10"), "there is no other target to give the remaining 90 % to"),
        (("remove", "nobody"), "there is no alias 'nobody'"),
        (("show", "nobody"), "there is no alias 'nobody'"),
        (("rollback", "--to", "999999"), "there is no version 999999"),
        (("rollout", "nobody", SMALL), "there is no alias 'nobody'"),
        (("rollout", "helexa/small", SMALL), f"helexa/small stands for {SMALL} already"),
        (("rollout", "helexa/small", "helexa/large"), "names an alias, not a model"),
        (("rollout", "helexa/small", "--abort"), "helexa/small is not being rolled out"),
        (("rollout", "helexa/large", "--status"), "helexa/large was never rolled out"),
    ],
)
def test_refusal_writes_nothing_and_says_why(operator, arguments, reason):
    """One line on stderr, exit code 1, no traceback."""
    before = operator.models.read_bytes()

    result = operator("alias", *arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert reason.replace("aliases.helexa/small", "helexa/small") in result.stderr
    assert operator.models.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--steps", "50,5"), "steps rise"),
        (("--steps", "5,200"), "steps rise"),
        (("--steps", "a"), "no percentages"),
        (("--every", "soon"), "is no time"),
        (("--guard", "luck"), "there is no guard 'luck'"),
        (("--guard", "errors=x"), "is no number"),
        (("--guard", "errors=-1"), "a tolerance is"),
        (("--guard", "errors=nan"), "a tolerance is"),
        (("--guard", "ttft=inf"), "a tolerance is"),
        (("--steps", "nan"), "steps rise"),
        (("--every", "9" * 400 + "d"), "nobody waits for so long"),
        (("--status",), "say one of TARGET, --status and --abort"),
    ],
)
def test_odd_rollout_is_a_usage_error(operator, arguments, reason):
    """Exit code 1, as for every refusal, and what would have been right."""
    result = operator("alias", "rollout", "helexa/small", MIDDLE, *arguments)

    assert result.exit_code == 1
    assert reason in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("alias", "set", "helexa/small", MIDDLE, "--weight", "101"),
        ("alias", "set", "helexa/small", MIDDLE, "--weight", "nan"),
        ("alias", "set", "helexa/small"),
        ("alias", "sett"),
        ("plan", "--online"),
        ("plan", "no/such.toml"),
        ("--verbose",),
    ],
)
def test_command_line_that_is_wrong_is_no_answer(operator, arguments):
    """Exit code 1: the 2 of `plan` means changes, that of `alias` that it is written and no gateway answers."""
    result = operator(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: " in result.stderr


def test_rollouts_that_cannot_be_read_are_said_and_hinder_nobody(operator):
    """A list is a list, and what was written is told to be written."""
    operator.records.rollouts_path.write_text("{}}")
    try:
        result = operator("alias", "list")
        assert (result.exit_code, "helexa/small" in result.stdout) == (0, True)
        assert result.stderr.startswith(f"warning: {operator.records.rollouts_path}: ")
        assert "repair it, or move it away" in result.stderr

        said = operator.done("alias", "set", "helexa/small", MIDDLE)
        assert "warning: " in said
        assert "in force: generation " in said
        refused = operator("alias", "rollout", "helexa/small", SMALL)
        assert (refused.exit_code, "repair it, or move it away" in refused.stderr) == (1, True)
    finally:
        operator.records.rollouts_path.unlink()


@pytest.mark.parametrize(
    ("interrupted", "told"),
    [
        ("_refuse_another_file", "interrupted: nothing was written\n"),
        ("see_through", "interrupted: what was begun goes on; only the watching has ended\n"),
    ],
)
def test_interrupt_says_whether_anything_was_written(operator, monkeypatch, interrupted, told):
    """Exit code 130, and no more than is true."""

    def ctrl_c(*_, **__):
        raise KeyboardInterrupt

    before = operator.models.read_bytes()
    monkeypatch.setattr(alias_edit.AliasCommands, interrupted, ctrl_c)
    result = operator("alias", "set", "helexa/small", MIDDLE, "--wait")

    assert (result.exit_code, result.stderr) == (130, told)
    assert (operator.models.read_bytes() == before) == ("nothing" in told)


def test_history_of_an_alias_that_never_changed_says_so(operator):
    """There are versions, and none of them is about it."""
    assert "none in which 'nobody' changed" in operator.done("alias", "history", "nobody")


def test_file_at_fault_is_not_edited(operator):
    """What is broken is mended first: every fault with its line."""
    operator.edit(operator.models.read_bytes() + b"[aliases]\n")

    result = operator("alias", "set", "helexa/small", MIDDLE)

    assert result.exit_code == 1
    assert f"{operator.models}:" in result.stderr or "not TOML" in result.stderr


def test_gateway_that_reads_another_file_is_not_waited_for(operator, tmp_path):
    """The wrong -c: nothing is written into a file that nobody reads."""
    shutil.copy(operator.models, tmp_path / "models.toml")
    config = tmp_path / "cortex.toml"
    shutil.copy(operator.config, config)
    before = (tmp_path / "models.toml").read_bytes()

    result = operator("alias", "set", "helexa/small", MIDDLE, "-c", config)

    assert result.exit_code == 1
    assert f"reads {operator.models}, not {tmp_path / 'models.toml'}" in result.stderr
    assert (tmp_path / "models.toml").read_bytes() == before


# Seeing.


def test_list_says_what_stands_for_what_and_how(operator):
    """The file, and whether it is in force."""
    said = operator.done("alias", "list")
    assert [line.split() for line in said.splitlines() if line.startswith("helexa/small")] == [
        ["helexa/small", SMALL, "in", "force"]
    ]

    told = json.loads(operator.done("alias", "list", "--json"))
    assert told["aliases"][-1]["targets"] == [{"model": SMALL, "weight": 1.0}]


def test_bad_edit_is_seen_and_taken_back(operator):
    """Not in force, and one command from being so again."""
    before = operator.models.read_bytes()
    operator.edit(before.replace(b'"helexa/small" = ', b'"helexa/small" = 7 # '))
    wait_until(lambda: operator.records.audit_log.newest_first().__next__().fields["event"] == "rejected")

    assert operator("alias", "list").exit_code == 1
    operator.done("alias", "rollback")

    assert operator.models.read_bytes() == before
    assert "in force" in operator.done("alias", "list")


def test_history_names_versions_that_rollback_takes(operator):
    """By number, and by the beginning of a hash; of one alias only those in which it changed."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    operator.done("alias", "set", "helexa/large", MIDDLE)
    wait_until(lambda: "helexa/large" in operator.done("alias", "history", "--limit", 1))

    newest, older, *_ = json.loads(operator.done("alias", "history", "--json"))["versions"]
    assert (newest["aliases"], older["aliases"]) == (["helexa/large"], ["helexa/small"])
    assert newest["who"] == os_user()
    of_small = json.loads(operator.done("alias", "history", "helexa/small", "--json"))["versions"]
    assert of_small[0]["number"] == older["number"]

    operator.done("alias", "rollback", "--to", older["number"])
    assert operator.models.read_bytes() == set_alias(before, "helexa/small", {MIDDLE: 1})
    operator.done("alias", "rollback", "--to", digest_of(before)[:8])
    assert operator.models.read_bytes() == before


def test_rollback_of_one_alias_leaves_the_others(operator):
    """As it stood in the last version that said otherwise."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    operator.done("alias", "set", "helexa/large", MIDDLE)

    operator.done("alias", "rollback", "helexa/small")

    assert operator.models.read_bytes() == set_alias(before, "helexa/large", {MIDDLE: 1})


def test_show_tells_everything_of_one_alias(operator):
    """Where its targets are, and its last changes."""
    operator.done("alias", "set", "helexa/small", MIDDLE, "--weight", 25, "--cold")

    said = operator.done("alias", "show", "helexa/small")

    assert f"[{SMALL} 75, {MIDDLE} 25]" in said
    assert f"{SMALL}: benjy loaded, quadbrat loaded" in said
    assert "cold" in said
    told = json.loads(operator.done("alias", "show", "helexa/small", "--json"))
    assert told["loaded_on"][MIDDLE] == ["beast loaded"]


# Nobody there.


def test_without_a_gateway_the_file_is_changed_all_the_same(alone):
    """Exit code 2; and the way back is known without a gateway, too."""
    before = alone.models.read_bytes()

    said = alone.done("alias", "set", "helexa/small", MIDDLE, code=2)
    assert "no answer from" in said
    assert MIDDLE.encode() in alone.models.read_bytes()
    assert "no gateway answers" in alone.done("alias", "list")
    alone.done("alias", "rollback", code=2)

    assert alone.models.read_bytes() == before


def test_rollback_of_nothing_known_says_so(alone):
    """Nobody has written a history yet."""
    result = alone("alias", "rollback")

    assert result.exit_code == 1
    assert "no earlier file is known" in result.stderr


def test_rollout_without_a_gateway_waits_for_one(alone):
    """It is written down."""
    said = alone.done("alias", "rollout", "helexa/small", MIDDLE, code=2)

    assert "begins when one does" in said
    assert "about to begin" in alone.done("alias", "rollout", "helexa/small", "--status")
    assert "rolled out to Qwen/Qwen3-8B already" in alone("alias", "rollout", "helexa/small", LARGE).stderr
    alone.done("alias", "rollout", "helexa/small", "--abort")


def test_history_that_cannot_be_kept_is_a_warning(alone):
    """A swap in a bad hour does not fail for it."""
    alone.models.with_name("models.history").write_text("in the way")

    said = alone.done("alias", "set", "helexa/small", MIDDLE, code=2)

    assert "warning: there is no way back from this by `rollback`: " in said
    assert MIDDLE.encode() in alone.models.read_bytes()


# As processes: what a shell sees.


def test_race_of_set_and_rollback_ends_in_one_of_the_two(operator):
    """Two shells at the same moment, again and again: never a mixture, never a file that is refused."""
    one, two = operator.models.read_bytes(), None
    for _ in range(3):
        operator.done("alias", "set", "helexa/small", MIDDLE)
        two = operator.models.read_bytes()
        with (
            running_cortex("alias", "rollback", "-c", operator.config) as back,
            running_cortex("alias", "set", "helexa/small", LARGE, "-c", operator.config) as forth,
        ):
            assert {back.end()[0], forth.end()[0]} <= {0, 1, 3}
        three = set_alias(one, "helexa/small", {LARGE: 1})
        assert operator.models.read_bytes() in {one, two, three}
        operator.edit(one)


def test_real_process_says_the_same(operator):
    """Exit code, one line each, nothing on stderr."""
    done = cortex("alias", "set", "helexa/small", MIDDLE, "-c", operator.config)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{operator.models}: ~alias helexa/small: {SMALL} -> {MIDDLE}"


# The trail.


def test_trail_says_who_did_what(operator):
    """The OS user and their command; an edit is a file's; a broken one is refused by name."""
    before = operator.models.read_bytes()
    already = len(operator.lines())
    operator.done("alias", "set", "helexa/balanced", SMALL, "--wait")
    operator.edit(before)
    wait_until(lambda: in_force(operator) == digest_of(before))

    def applied():
        return [line for line in operator.lines()[already:] if line["event"] == "applied"]

    wait_until(lambda: len(applied()) == 2)
    assert [(line["who"], line.get("command")) for line in applied()] == [
        (os_user(), f"cortex alias set helexa/balanced {SMALL}"),
        ("file", None),
    ]
    assert applied()[0]["plan"]["aliases"][0]["name"] == "helexa/balanced"


def test_audit_verify_and_show(operator):
    """In order, and the newest lines in words."""
    operator.done("alias", "set", "helexa/balanced", SMALL)
    wait_until(lambda: "alias set helexa/balanced" in operator.done("audit", "show"))

    assert "are as they were written" in operator.done("audit", "verify")
    lines = json.loads(operator.done("audit", "show", "--limit", 3, "--json"))["lines"]
    assert len(lines) == 3


def test_audit_verify_names_the_first_broken_line(operator, tmp_path):
    """Of a copy that somebody touched."""
    operator.done("alias", "set", "helexa/balanced", SMALL)
    wait_until(lambda: len(operator.lines()) >= 2)
    for path in (operator.config, operator.models, operator.records.audit_log.path):
        shutil.copy(path, tmp_path / path.name)
    touched = tmp_path / operator.records.audit_log.path.name
    touched.write_bytes(touched.read_bytes().replace(b'"who":"cortex"', b'"who":"nobody"', 1))

    result = operator("audit", "verify", "-c", tmp_path / "cortex.toml")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"broken: {touched}:1: ")


# Plan.


def test_plan_of_the_file_in_force_is_nothing_to_do(operator):
    """Exit code 0."""
    assert "nothing to do" in operator.done("plan")


def test_plan_says_what_a_file_would_do(operator, tmp_path):
    """Exit code 2, before anybody saved it; the file in force is as it was."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))
    before = in_force(operator)

    said = operator.done("plan", wanted, code=2)

    assert f"helexa/small  {SMALL} -> {LARGE}" in said
    assert f"{LARGE} is loaded on beast" in said
    assert "VRAM, MB" in said
    assert in_force(operator) == before
    told = json.loads(operator.done("plan", wanted, "--json", code=2))
    assert told["aliases"][0]["placements"][0]["nodes"] == ["beast"]


def test_plan_of_the_impossible_says_what_is_needed(operator, tmp_path):
    """Exit code 1."""
    wanted = tmp_path / "wanted.toml"
    data = set_alias(operator.models.read_bytes(), "helexa/small", {"huge": 1})
    wanted.write_bytes(
        data + b'\n[[models]]\nid = "huge"\nharness = "x"\nmin_devices = 2\nmin_device_vram_mb = 48000\n'
    )

    assert "no neuron can hold huge: needs 2 devices of 48,000 MB" in operator.done("plan", wanted, code=1)


@pytest.mark.parametrize("offline", [(), ("--offline",)])
def test_plan_of_a_faulty_file_lists_every_fault(operator, tmp_path, offline):
    """Exit code 1, with the lines of the file that was given."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_text('[aliases]\na = 7\nb = "a"\n')

    said = operator.done("plan", wanted, *offline, code=1)

    assert f"{wanted}:2: aliases.a: " in said
    assert f"{wanted}:3: aliases.b: " in said


def test_plan_offline_compares_with_the_last_version(operator, tmp_path):
    """No gateway is asked, and nothing said of the fleet."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))

    said = operator.done("plan", wanted, "--offline", code=2)

    assert f"~alias helexa/small: {SMALL} -> {LARGE}" in said
    assert "VRAM" not in said


def test_plan_offline_without_a_trail_compares_with_the_configured_file(alone, tmp_path):
    """Or says that there is nothing to compare with."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(alone.models.read_bytes(), "helexa/small", {LARGE: 1}))

    assert "~alias helexa/small" in alone.done("plan", wanted, "--offline", code=2)
    assert "nothing to compare" in alone("plan", "--offline").stderr


def test_plan_without_anybody_to_ask_is_code_3(alone):
    """Neither nothing to do nor impossible."""
    assert "--offline asks no gateway" in alone("plan").stderr
    assert alone("plan").exit_code == 3
    without = alone.config.with_name("without.toml")
    without.write_text(alone.config.read_text().replace("token", "# token"))
    assert "for whoever has the admin token" in alone("plan", "-c", without).stderr


# Compare.


def test_compare_shows_an_alias_beside_its_shadow(operator):
    """Figures of both, in a table or as JSON; without a shadow it says how to get one."""
    assert "has no shadow" in operator.done("alias", "compare", "helexa/large", code=1)
    assert "alias 'nobody' does not exist" in operator.done("alias", "compare", "nobody", code=1)
    shadowed = f'"helexa/small" = {{ target = "{SMALL}", shadow = {{ model = "{MIDDLE}", percent = 100 }} }}'
    lines = operator.models.read_text().splitlines(keepends=True)
    edited = [shadowed + "\n" if line.startswith('"helexa/small"') else line for line in lines]
    operator.edit("".join(edited).encode())
    wait_until(lambda: in_force(operator) == digest_of(operator.models.read_bytes()))
    assert "nothing compared yet" in operator.done("alias", "compare", "helexa/small")

    url = alias_edit.Gateway.of(load(operator.config, {}).settings).endpoint
    body = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
    with httpx.Client(trust_env=False, timeout=SAFETY_NET_S) as client:
        assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    wait_until(lambda: json.loads(operator.done("alias", "compare", "helexa/small", "--json"))["compared"] == 1)

    said = operator.done("alias", "compare", "helexa/small")
    assert f"only 1 compared; {MIDDLE} takes" in said
    assert "same answer" in said
    assert "stop 1" in said
