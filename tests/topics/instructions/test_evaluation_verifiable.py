"""Every topic is asked with every instruction, and each instruction can be checked."""

from kleiber_topics.instructions.evaluation import CHECKS, INSTRUCTIONS, TOPICS, instruction_rows


def test_prompts_are_topics_with_instructions():
    rows = instruction_rows()
    assert len(rows) == len({row["prompt"] for row in rows}) == len(TOPICS) * len(INSTRUCTIONS)
    assert {name for row in rows for name in row["instruction_id_list"]} == set(CHECKS)
    assert all(len(row["kwargs"]) == len(row["instruction_id_list"]) == 1 for row in rows)
