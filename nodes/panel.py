"""The live panel's ends in ComfyUI: the store, who is told, and the routes."""

from contextlib import AbstractContextManager

import comfy.model_management
from comfy_execution.utils import get_executing_context

from ..panel.routes import add_routes, addressed
from ..panel.runs import Run, RunStore
from ..sampling.guard import harmless
from .compat import prompt_server, queued, show_on_node


def send(event: str, data: dict, client: str | None) -> None:
    """To the page that queued the prompt; every client of the API sees the score as text on the node."""
    server = prompt_server()
    if server is None:
        return
    if client is not None:
        server.send_sync(event, data, client)
    if event == "foresight.step" and data["score"] is not None:
        run = STORE.run(data["run"])
        trial = run.trials[data["index"]]
        name = trial.trial.capitalize() if trial.details else f"Trial {trial.trial}"
        show_on_node(run.about["node"], f"{name}, step {data['step']}/{trial.steps}: score {data['score']:.3f}")
    if event == "foresight.wait":
        left = data["seconds"]
        waiting = f"Waiting for you in the Foresight tab: {left} s, then the best are taken"
        show_on_node(STORE.run(data["run"]).about["node"], waiting if left else "Going on with the choice")


STORE = RunStore(send, comfy.model_management.InterruptProcessingException)


def running(previous=None) -> AbstractContextManager[Run]:
    """The run of the node that is being executed. previous: the verdict that it goes on from, if any."""
    context, server = get_executing_context(), prompt_server()
    prompt = context.prompt_id if context else ""
    graph = None
    with harmless("the graph's own name was not found"):  # whoever queues a graph sends along what he likes
        graph = queued(prompt)[1].get("extra_pnginfo", {}).get("workflow", {}).get("id")
    return STORE.running(
        previous.run if previous else None, prompt, context.node_id if context else "",
        server.client_id if server else None, graph,
    )  # fmt: skip


def register() -> None:
    """Adds the routes; nothing where there is no server (tests, scripts)."""
    if server := prompt_server():
        add_routes(server.routes, STORE)
        server.app.middlewares.insert(0, addressed)
