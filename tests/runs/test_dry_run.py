"""What a dry run says of the stages of a run."""

from .test_banner import texts


def test_a_dry_run_tells_what_the_banner_tells(launch, capsys, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("a few words of text " * 40)
    command = ["data=text", f"data.path={path}", "budget.tokens=10K", "dry_run=true"]
    launch(*command)
    out = capsys.readouterr().out
    (files,), (warning,) = texts(out, "files"), texts(out, "warning")
    assert files == "few: 1 file, 800 bytes, 1 document (1 text)" and "budget.tokens=10K is" in warning
    launch(*command, "trainer.max_steps=2")
    (steps,) = texts(capsys.readouterr().out, "steps")
    assert steps.startswith("2 of ") and "budget.steps=2" in steps
