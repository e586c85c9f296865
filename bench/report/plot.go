package main

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// Size of a plot.
const (
	plotWidth  = 18 * vg.Centimeter
	plotHeight = 11 * vg.Centimeter
)

// steps is how many points a line has between one power of ten and the next.
const steps = 40

// quantiles are the marks of the axis of quantiles.
var quantiles = plot.ConstantTicks{
	{Value: 1, Label: "0"}, {Value: 2, Label: "50 %"}, {Value: 10, Label: "90 %"}, {Value: 100, Label: "99 %"},
	{Value: 1000, Label: "99.9 %"}, {Value: 10000, Label: "99.99 %"},
}

// plotTo draws distributions as an SVG: the quantile to the right, each 9 as wide as the one before it, so that
// the tail can be seen, and the time upwards, by powers of ten.
func plotTo(path, title string, lines []distribution) error {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text, p.Y.Label.Text = "keystrokes that took no longer", "milliseconds"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = quantiles, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = false, false
	p.Add(plotter.NewGrid())
	for i, d := range lines {
		line, err := plotter.NewLine(points(d))
		if err != nil {
			return fmt.Errorf("plot %s: %w", path, err)
		}
		line.Color, line.Dashes, line.Width = plotutil.Color(i), plotutil.Dashes(i/len(plotutil.DefaultColors)), vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(d.parts["design"], line)
	}
	if err := p.Save(plotWidth, plotHeight, path); err != nil {
		return fmt.Errorf("plot %s: %w", path, err)
	}
	return nil
}

// points are a distribution's: 1/(1-q) and the q-th quantile in milliseconds, as far as there are samples.
func points(d distribution) plotter.XYs {
	var xys plotter.XYs
	last := math.Log10(float64(max(len(d.took), 2)))
	for e := 0.0; e <= last; e += 1.0 / steps {
		x := math.Pow(10, e)
		took := float64(d.quantile(1-1/x).Nanoseconds()) / 1e6
		xys = append(xys, plotter.XY{X: x, Y: max(took, 1e-3)})
	}
	return xys
}
