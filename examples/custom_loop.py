"""A hand-written training loop on cached activations: what is frozen has been computed before the loop starts.

python examples/custom_loop.py flowers/
"""

import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import headstart as hs


def fine_tune(data: str, *, unfreeze: str = "blocks.6", views: int = 3, epochs: int = 6, seed: int = 0) -> hs.Model:
    """Trains everything after a freeze boundary, starting from the head fitted on frozen features."""
    bench = hs.prepare(data, unfreeze=unfreeze, views=views, seed=seed, progress=hs.TerminalProgress())
    net = bench.classifier
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    steps = epochs * sum(1 for _ in bench.batches("train"))
    optimizer = torch.optim.AdamW(net.parameter_groups(lr=1e-3, decay=0.8, weight_decay=0.05))
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=0.1)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        for x, labels in bench.batches("train", epoch=epoch):
            optimizer.zero_grad()
            loss_of(net(x), labels).backward()
            torch.nn.utils.clip_grad_norm_(net.trainable_parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
        print(f"epoch {epoch + 1}: {bench.scores()}")
    net.load_state_dict(average.module.state_dict())
    return bench.model()


if __name__ == "__main__":
    model = fine_tune(sys.argv[1])
    print(model.scores)
    model.save("custom-loop.safetensors")
