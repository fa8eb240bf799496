"""What the ExPrune paper (arXiv 2506.02210) reports, made again with its guards and its count, and ours beside it.

As in its reference implementation: one test after the first 32 terms; one alpha (0 to 0.5) or T for every site, found
by Optuna's estimator for two objectives, settings that are the same everywhere first, trials given up that are 2 points
behind on their first examples; FLOPs as `exprune_fx.studies.paper.counting` says. Otherwise here:

- What is chosen on selection examples is judged on others. The reference implementation evaluates all trials that are
  within 2 points on its validation set on the test set, and shows the best of them there.
- Its variance is about the mean with the bias and batch norm's shift in it; the paper's formula, and ours, about the
  mean of the terms.
- It searches T in one interval for all layers (-30 to 0 for CNNs); here in every site's own scale, which finds more.
- For pruned networks it waits, neuron by neuron, for 32 terms with any weight; here one number of terms a site, at
  which its neurons have seen 32 such terms on average.
- A site whose alpha is below 0.01 is left dense, and pays for no tests.
- Tens of trials instead of 2,000.
"""
