"""A command permits what it names, and its permissions end with it."""

from kleiber.config.permissions import is_permitted, permit, permit_data, permitted_data, reader_permissions
from kleiber.types.access import Access


def test_permissions_are_those_of_the_command_alone():
    with reader_permissions():
        permit_data(["s3://a/b", "part-*.jsonl"])
        permit([(Access.RUN, "tasks")])
        assert is_permitted((Access.READ, "s3://a/b")) and is_permitted((Access.RUN, "tasks"))
        assert not is_permitted((Access.WRITE, "tasks")) and permitted_data() == ["part-*.jsonl", "s3://a/b"]
    assert permitted_data() == [] and not is_permitted((Access.RUN, "tasks"))
