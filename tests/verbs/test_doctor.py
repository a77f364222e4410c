from twostream_ray.runs.doctor.checks import Check
from twostream_ray.verbs.doctor import grouped


def test_a_hundred_nodes_that_are_well_are_one_row_and_the_ill_one_its_own() -> None:
    checks = [Check(name="clock", status="ok", found=f"+0.00{n % 9} s", node=f"n{n}") for n in range(100)]
    ill = Check(name="clock", status="wrong", found="+90 s", node="n100", way_out="chrony")
    other = Check(name="disk", status="ok", found="much", node="n1")
    rows = grouped([*checks[:50], other, ill, *checks[50:]])
    assert [(row["name"], row["status"], row["where"]) for row in rows] == [
        ("clock", "ok", "n0 and 99 more nodes"),
        ("clock", "wrong", "n100"),
        ("disk", "ok", "n1"),
    ]
    assert rows[1]["way_out"] == "chrony" and rows[0]["found"] == "+0.000 s, and the like"
