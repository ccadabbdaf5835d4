"""Bundle -> verdicts. Runs without torch.

    from agvas_runtime import Segmenter
    for result in Segmenter.load("nano").predict("parts/", stream=True):
        print(result.name, result.verdict, len(result.regions))
"""
