"""ABMIL: forward (and backward) at N = 10,000 against its matrix products."""

import torch

import wsizoo
from benchmarks._measure import interleaved, report

N, DIM, EMBEDDING, ATTENTION = 10_000, 1024, 512, 384


def run() -> None:
    torch.manual_seed(0)
    model = wsizoo.build("abmil-uni", "head.classes=[a,b]")
    bag = wsizoo.Bag(torch.randn(N, DIM))
    embed, value = torch.randn(DIM, EMBEDDING), torch.randn(EMBEDDING, ATTENTION)
    gate, hidden = torch.randn(EMBEDDING, ATTENTION), torch.randn(N, EMBEDDING)

    def matmuls() -> None:
        torch.mm(bag.features, embed)
        torch.mm(hidden, value)
        torch.mm(hidden, gate)

    @torch.inference_mode()
    def forward() -> None:
        model(bag)

    def with_backward() -> None:
        model.zero_grad()
        model(bag).logits[0].backward()

    def matmuls_with_backward() -> None:
        # The features need no gradient: one product less than three times the forward's.
        matmuls()
        torch.mm(bag.features.T, hidden)
        for weight in (value, gate):
            outer = hidden[:, :ATTENTION]
            torch.mm(outer, weight.T)
            torch.mm(hidden.T, outer)

    ours, theirs = interleaved(forward, matmuls, rounds=9)
    both, matmuls_both = interleaved(with_backward, matmuls_with_backward, rounds=9)
    print(f"  {torch.get_num_threads()} threads, N = {N}, {DIM} -> {EMBEDDING}, gate {ATTENTION}")
    report("forward", ours, theirs, "its three matmuls")
    report("forward + backward", both, matmuls_both, "its eight matmuls")
