import torch

import wsizoo


class ExamplePooling(wsizoo.Aggregator):
    """Softmax pooling: every patch gets one weight, and the slide is their weighted sum."""

    def __init__(self, in_dim, dim=256):
        super().__init__(in_dim, out_dim=dim)
        self.embed = torch.nn.Linear(in_dim, dim)
        self.score = torch.nn.Linear(dim, 1)

    def forward(self, bag):
        patches = self.embed(bag.features).relu()  # (N, E)
        scores = self.score(patches)[:, 0].softmax(0)  # (N,)
        return wsizoo.Aggregated(slide=scores @ patches, scores=scores)
