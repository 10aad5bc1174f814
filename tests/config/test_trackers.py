from campaign_data import parsed, refusal


def test_a_message_goes_to_a_webhook_or_a_command():
    for entry in ({}, {"webhook": "https://x", "command": "true"}):
        assert "give webhook or command" in refusal(notify=[entry])
    assert "notify.0.webhook" in refusal(notify=[{"webhook": "x"}])
    [entry] = parsed(notify=[{"command": ["say", "done"]}]).notify
    assert entry.when == ["finish", "failure"]


def test_a_tracker_is_a_name_or_a_name_with_options():
    first, second = parsed(trackers=["jsonl", {"kind": "diary:Diary", "loud": True}]).trackers
    assert (first.kind, first.options) == ("jsonl", {})
    assert (second.kind, second.options) == ("diary:Diary", {"loud": True})
