// Sums (MAX = 0) or takes the greatest (MAX = 1) of LANES elements each over the beats from a first to a last one.
// OUT bits hold every sum; for MAX it is WIDTH.
module edgesdk_accumulate #(
    parameter integer LANES = 1,
    parameter integer WIDTH = 8,
    parameter integer SIGNED = 1,
    parameter integer MAX = 0,
    parameter integer OUT = 12
) (
    input  wire                   clk,
    input  wire                   rst,
    input  wire                   s_valid,
    output wire                   s_ready,
    input  wire [LANES*WIDTH-1:0] s_data,
    input  wire                   s_first,
    input  wire                   s_last,
    output reg                    m_valid,
    input  wire                   m_ready,
    output wire [LANES*OUT-1:0]   m_data
);
    wire en = !m_valid || m_ready;
    assign s_ready = en;

    always @(posedge clk) begin
        if (en) m_valid <= s_valid && s_last;
        if (rst) m_valid <= 1'b0;
    end

    genvar i;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : lane
            reg  [OUT-1:0] held;
            wire [OUT-1:0] next;
            assign m_data[i*OUT+:OUT] = held;
            always @(posedge clk) if (en && s_valid) held <= next;
            edgesdk_combine #(
                .WIDTH(WIDTH), .SIGNED(SIGNED), .MAX(MAX), .OUT(OUT)
            ) combine (.first(s_first), .x(s_data[i*WIDTH+:WIDTH]), .held(held), .next(next));
        end
    endgenerate
endmodule
