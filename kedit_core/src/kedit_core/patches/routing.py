"""Asking the routers on a stack how prompts are answered."""

from __future__ import annotations

from collections.abc import Sequence

from kedit_core.patches.kinds import Route, RouterKind, blamed, kind_error


def route_prompts(routers: Sequence[RouterKind], prompts: Sequence[str]) -> list[Route]:
    """One route per prompt. Each router sees the prompts as written, so taking one off changes no other's decision.

    Contexts are put before the prompt in stack order (the lowest router's first); of several models, the highest
    router's answers. Raises PluginError when a router fails, or does not give one route per prompt.
    """
    routes = [Route() for _ in prompts]
    for router in routers:
        kind, cls = router.operation.kind, type(router)
        with blamed(kind, cls, "failed in route"):
            given = list(router.route(tuple(prompts)))
        if len(given) != len(prompts) or not all(isinstance(route, Route) for route in given):
            raise kind_error(
                kind,
                cls,
                f"gave {len(given)} answers for {len(prompts)} prompts, or ones that are no routes; it must give one "
                "Route for each",
            )
        routes = [
            Route(context=below.context + route.context, model=route.model or below.model)
            for below, route in zip(routes, given, strict=True)
        ]
    return routes
