"""The look of every chart, and the chart forms that reports share. Altair is imported when a chart is drawn."""
