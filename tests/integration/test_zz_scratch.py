import pytest
from tests.support.wait import wait_until
def test_fixtures_work(fleet_config, processes, redis_client):
    fleet = fleet_config({"n1": {f"a/{i}": 9000 for i in range(80)}, "n2": {"b": 10}}, options={"check_interval": "1s"})
    w = processes.worker(); processes.beat()
    wait_until(lambda: len(fleet.objects("n2")) > 30, 30, "objects moved")
    wait_until(lambda: len(fleet.all_objects()) == 81, 10, "x")
    w.stop(); assert not w.alive
