"""Tasks: lm-eval's and functions of the user's own, and the items that they are made of.

`task_set` holds a campaign's tasks; `lm_eval_loading` finds lm-eval's tasks and their data;
`lm_eval_task` chooses their metrics and few-shot examples and builds their requests; `own_metric`
imports a function of the user's own.
"""
