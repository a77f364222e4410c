from typing import Any

from twostream_ray.runs.submit.waiting import explain

NODES = [{"resources_total": {"CPU": 2.0, "memory": 2.0**30}}, {"resources_total": {"CPU": 8.0, "GPU": 1.0}}]
GROUP = {
    "state": "PENDING",
    "creator_job_id": "02",
    "bundles": [{"unit_resources": {"CPU": 1.0, "GPU": 1.0}}, {"unit_resources": {"CPU": 1.0, "GPU": 1.0}}],
}


def explained(job: dict[str, Any], **facts: Any) -> str:
    given = {"actors": [], "groups": [], "nodes": NODES, "grows": False, "others": [], **facts}
    return "; ".join(explain({"submission_id": "a", **job}, **given))


def test_a_job_that_has_ended_or_works_waits_for_nothing() -> None:
    assert explained({"status": "FAILED"}) == "the job a waits for nothing: it is FAILED"
    assert "runs and waits for nothing" in explained({"status": "RUNNING", "job_id": "01"}, groups=[GROUP])


def test_a_pending_job_waits_for_the_room_of_its_process_or_for_its_files() -> None:
    actor = {"name": "_ray_internal_job_actor_a", "required_resources": {"CPU": 9.0}}
    said = explained({"status": "PENDING"}, actors=[actor])
    assert "its process wants 1 x (9 CPU), the cluster has 1 x (2 CPU, 0 GPU, 1.0 GiB of memory) and 1 x (8 CPU" in said
    assert "no node will ever have 1 x (9 CPU), and there is no autoscaler" in said
    assert "runtime environment" in explained({"status": "PENDING"}, actors=[{**actor, "required_resources": {}}])


def test_a_running_job_may_wait_for_the_room_of_its_workers() -> None:
    job = {"status": "RUNNING", "job_id": "02"}
    said = explained(job, groups=[GROUP], others=[{"submission_id": "b"}, {"submission_id": "a"}])
    assert "its workers want 2 x (1 CPU, 1 GPU)" in said and "other jobs use it: b" in said
    larger = {**GROUP, "bundles": [{"unit_resources": {"GPU": 4.0}}]}
    assert "its autoscaler has to add a node with 1 x (4 GPU)" in explained(job, groups=[larger], grows=True)
