"""An agent learns to balance a pole by policy gradients; the cart and the pole are simulated on the GPU too.

    weft run --gpu orin examples/pytorch/policy_gradient.py [--updates N] [--carts N] [--seed N]

Many carts run side by side as one batch of tensors. The agent pushes left or right; a round ends when the pole has
fallen or after 200 pushes. Advantage actor-critic with a clipped objective. Out: the mean length of a round as the
agent learns, beside that of random pushes, and the time of one step of all carts on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse
import math

import torch
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

LONGEST = 200
GRAVITY, CART_KG, POLE_KG, HALF_POLE_M, PUSH_N, STEP_S = 9.81, 1.0, 0.1, 0.5, 10.0, 0.02
DISCOUNT, TRACE = 0.99, 0.95


class Carts:
    """`count` carts with poles: state [count, 4] = position m, speed m/s, angle rad, angular speed rad/s."""

    def __init__(self, count: int, device: torch.device):
        self.state = torch.zeros(count, 4, device=device)
        self.age = torch.zeros(count, dtype=torch.int64, device=device)
        self.restart(torch.ones(count, dtype=torch.bool, device=device))

    def restart(self, which: torch.Tensor) -> None:
        """Put some carts back to the middle, with a small random tilt."""
        fresh = torch.empty_like(self.state).uniform_(-0.05, 0.05)
        self.state = torch.where(which[:, None], fresh, self.state)
        self.age = torch.where(which, 0, self.age)

    def push(self, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of Euler's method under a push. Returns (fallen [count], timed out [count]).

        The equations of motion of a pole hinged on a cart, without friction, from the Lagrangian of the two masses.
        """
        x, speed, angle, turn = self.state.unbind(1)
        force = torch.where(right, PUSH_N, -PUSH_N)
        sine, cosine = angle.sin(), angle.cos()
        mass = CART_KG + POLE_KG
        drive = (force + POLE_KG * HALF_POLE_M * turn**2 * sine) / mass
        spin = (GRAVITY * sine - cosine * drive) / (HALF_POLE_M * (4 / 3 - POLE_KG * cosine**2 / mass))
        thrust = drive - POLE_KG * HALF_POLE_M * spin * cosine / mass
        change = torch.stack([speed, thrust, turn, spin], dim=1)
        self.state = self.state + STEP_S * change
        self.age += 1
        fallen = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > math.radians(12))
        return fallen, (self.age >= LONGEST) & ~fallen


class Agent(nn.Module):
    """State [n, 4] -> logits of the two pushes [n, 2] and value [n]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.policy = nn.Linear(64, 2)
        self.value = nn.Linear(64, 1)

    def forward(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(state)
        return self.policy(x), self.value(x).squeeze(-1)


def play(agent: Agent | None, carts: Carts, steps: int) -> tuple[dict[str, torch.Tensor], float]:
    """What happened in so many steps ([steps, carts] each), and the mean length of the rounds that ended."""
    record: dict[str, list[torch.Tensor]] = {"state": [], "action": [], "logp": [], "value": [], "ended": []}
    lengths = torch.zeros((), device=carts.state.device)
    rounds = torch.zeros((), device=carts.state.device)
    for _ in range(steps):
        state = carts.state
        with torch.no_grad():
            logits, value = agent(state) if agent is not None else (torch.zeros_like(state[:, :2]), state[:, 0] * 0)
        choice = Categorical(logits=logits)
        action = choice.sample()
        fallen, late = carts.push(action == 1)
        over = fallen | late
        lengths += (carts.age * over).sum()
        rounds += over.sum()
        carts.restart(over)
        for name, tensor in zip(record, (state, action, choice.log_prob(action), value, over)):
            record[name].append(tensor)
    mean = (lengths / rounds.clamp(min=1)).item()
    return {name: torch.stack(parts) for name, parts in record.items()}, mean


def advantages(record: dict[str, torch.Tensor], last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016) and returns, [steps, carts]; each step earns 1."""
    value, ended = record["value"], record["ended"]
    gain = torch.zeros_like(last)
    found = torch.zeros_like(value)
    for t in reversed(range(len(value))):
        goes_on = (~ended[t]).float()
        ahead = value[t + 1] if t + 1 < len(value) else last
        gain = 1 + DISCOUNT * ahead * goes_on - value[t] + DISCOUNT * TRACE * goes_on * gain
        found[t] = gain
    return found, found + value


def learn(agent: Agent, optimiser: torch.optim.Optimizer, carts: Carts, steps: int) -> float:
    """Plays, then improves the agent by four passes. Returns the mean length of a round."""
    record, mean = play(agent, carts, steps)
    with torch.no_grad():
        gain, target = advantages(record, agent(carts.state)[1])
    gain = ((gain - gain.mean()) / (gain.std() + 1e-8)).flatten()
    state, action, before = record["state"].flatten(0, 1), record["action"].flatten(), record["logp"].flatten()
    for _ in range(4):
        logits, value = agent(state)
        choice = Categorical(logits=logits)
        ratio = (choice.log_prob(action) - before).exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        loss = policy + 0.005 * F.mse_loss(value, target.flatten()) - 0.01 * choice.entropy().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimiser.step()
    return mean


def time_step(count: int, device: torch.device) -> float:
    """Seconds of one decision and one step of `count` carts."""
    agent, carts = Agent().to(device), Carts(count, device)
    return seconds_per_step(lambda: play(agent, carts, 10), device) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--carts", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    carts = Carts(args.carts, device)
    print(f"random pushes  mean round {play(None, carts, 100)[1]:6.1f} steps")
    agent = Agent().to(device)
    optimiser = torch.optim.Adam(agent.parameters(), lr=3e-3)
    for update in range(args.updates):
        mean = learn(agent, optimiser, carts, 32)
        if (update + 1) % 20 == 0:
            print(f"update {update + 1:3}     mean round {mean:6.1f} steps")
    reached = play(agent, Carts(args.carts, device), LONGEST)[1]
    print(f"the agent      mean round {reached:6.1f} steps of at most {LONGEST}")
    times = {d: time_step(4096, d) for d in devices()}
    print_comparison("decision and simulation step of 4,096 carts", times, 4096, "steps")


if __name__ == "__main__":
    main()
