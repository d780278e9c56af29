// Sum (MAX = 0) or maximum (MAX = 1) over the TAPS pixels of a window that come side by side, for LANES channels each.
// LEVELS >= 1, 2**LEVELS >= TAPS; OUT is WIDTH for MAX, else WIDTH + LEVELS, one more for numbers without sign.
module edgesdk_pool_window #(
    parameter integer LANES = 1,
    parameter integer TAPS = 4,
    parameter integer LEVELS = 2,
    parameter integer WIDTH = 8,
    parameter integer SIGNED = 1,
    parameter integer MAX = 1,
    parameter integer OUT = 8
) (
    input  wire                        clk,
    input  wire                        rst,
    input  wire                        s_valid,
    output wire                        s_ready,
    input  wire [TAPS*LANES*WIDTH-1:0] s_data,
    output wire                        m_valid,
    input  wire                        m_ready,
    output wire [LANES*OUT-1:0]        m_data
);
    localparam XBITS = SIGNED != 0 ? WIDTH : WIDTH + 1;
    localparam YBITS = MAX != 0 ? XBITS : XBITS + LEVELS;

    wire en;
    edgesdk_pipe #(
        .LATENCY(LEVELS)
    ) pipe (.clk(clk), .rst(rst), .s_valid(s_valid), .s_ready(s_ready), .en(en), .m_valid(m_valid), .m_ready(m_ready));

    genvar i, t;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : lane
            wire [TAPS*XBITS-1:0] x;
            wire [YBITS-1:0]      y;
            for (t = 0; t < TAPS; t = t + 1) begin : tap
                if (SIGNED != 0) begin : with_sign
                    assign x[t*XBITS+:XBITS] = s_data[(t*LANES+i)*WIDTH+:WIDTH];
                end else begin : without
                    assign x[t*XBITS+:XBITS] = {1'b0, s_data[(t*LANES+i)*WIDTH+:WIDTH]};
                end
            end
            edgesdk_tree #(
                .COUNT(TAPS), .LEVELS(LEVELS), .WIDTH(XBITS), .MAX(MAX), .OUT(YBITS)
            ) tree (.clk(clk), .en(en), .x(x), .y(y));
            assign m_data[i*OUT+:OUT] = y[OUT-1:0];
        end
    endgenerate
endmodule
